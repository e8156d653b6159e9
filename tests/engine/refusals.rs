//! Faulty calls: every device refuses the same ones, in the same words, and writes nothing.

use secateur::batch::Batch;
use secateur::engine::{
    DeviceChoice, Engine, Error, GradRequest, OptimizerState, Pass, Result, Sgd, SignStep, Tensor, WeightSet,
    open,
};
use secateur::model::layers::IMAGE_LEN;
use secateur::model::{ResNet, Weights, initialise};
use secateur::ops::{
    ApgdPhase, ApgdPoint, ApgdState, ApgdStep, AscentLoss, AttackSteps, BulletTrainScore, ClassDifference,
    CrossEntropy, Divergence, FabKeep, FabState, FabStep, GatherImages, GatherRows, ImageSet, LossOutputs,
    Margin, MarginLoss, Noise, PairedForm, PairedLoss, Pattern, Perturb, Query, RowNorms, ScatterRows,
    SearchState, SelectAtLeast, SelectTopK, SquareAccept, SquarePropose, TargetClass,
};
use secateur::philox::{Key, Purpose};

use crate::common::{self, SEED};

const NETWORK: ResNet = ResNet::resnet18(16, 10);
const BATCH: usize = 2;
const KEY: Key = Key { seed: SEED, purpose: Purpose::AttackStart, epoch: 0, step: 0 };
const STEP: SignStep = SignStep { step_size: 0.01, epsilon: 0.03 };
const TRAIN: Pass = Pass::Train { slot: 0 };
const SGD: Sgd = Sgd { learning_rate: 0.1, momentum: 0.9, weight_decay: 0.0, ..Sgd::ZERO };

/// Everything that a call may ask for, right in every way.
struct Operands {
    batch: Batch,
    set: ImageSet,
    scores: Tensor<f32>,
    /// f32, one image, and as many numbers as an image has less one.
    short: Tensor<f32>,
    words: Tensor<u32>,
    one_word: Tensor<u32>,
    margins: Tensor<f32>,
    apgd: ApgdState,
    /// Of another engine.
    foreign: Batch,
}

impl Operands {
    fn new(engine: &Engine, other: &Engine) -> Self {
        let batch = Batch::alloc(engine, BATCH).unwrap();
        engine.write(&batch.samples, &[0, 1]).unwrap();
        engine.write(&batch.labels, &[3, 4]).unwrap();
        engine.write(&batch.images, &[0.5; BATCH * IMAGE_LEN]).unwrap();
        engine.write(&batch.logits, &[0.25; BATCH * 10]).unwrap();
        Self {
            set: ImageSet::upload(engine, &[7; BATCH * IMAGE_LEN], &[1, 2]).unwrap(),
            scores: engine.upload("scores", &[1.0, f32::NAN]).unwrap(),
            short: engine.upload("short", &[0.5; IMAGE_LEN - 1]).unwrap(),
            words: engine.upload("words", &[0, 1]).unwrap(),
            one_word: engine.upload("one word", &[0]).unwrap(),
            margins: engine.upload("margins", &[1.0; BATCH]).unwrap(),
            apgd: ApgdState::alloc(engine, BATCH).unwrap(),
            foreign: Batch::alloc(other, BATCH).unwrap(),
            batch,
        }
    }

    fn search(&self) -> SearchState<'_> {
        SearchState {
            samples: &self.batch.samples,
            labels: &self.batch.labels,
            images: &self.batch.images,
            best: &self.batch.perturbed,
            margins: &self.margins,
            queries: &self.words,
        }
    }

    fn fab(&self) -> FabState<'_> {
        FabState {
            labels: &self.batch.labels,
            targets: &self.words,
            images: &self.batch.images,
            current: &self.batch.perturbed,
            closest: &self.apgd.best,
            distances: &self.margins,
        }
    }
}

type Call = fn(&mut Engine, &Operands) -> Result<()>;

/// Calls on weights that are loaded and folded, with what each refusal must name.
const CALLS: &[(&str, &[&str], Call)] = &[
    ("gather: too few images", &["short", "6144"], |e, o| {
        let (samples, labels) = (&o.batch.samples, &o.batch.labels);
        e.run(&GatherImages { set: &o.set, samples, augment: None, images: &o.short, labels })
    }),
    ("gather: a set that says another count", &["data set images", "9216"], |e, o| {
        let set = ImageSet { count: 3, ..o.set.clone() };
        let Batch { samples, images, labels, .. } = &o.batch;
        e.run(&GatherImages { set: &set, samples, augment: None, images, labels })
    }),
    ("gather: labels over the samples", &["batch samples"], |e, o| {
        let Batch { samples, images, .. } = &o.batch;
        e.run(&GatherImages { set: &o.set, samples, augment: None, images, labels: samples })
    }),
    ("perturb: too few images", &["short", "6144"], |e, o| {
        let Batch { samples, images, .. } = &o.batch;
        let noise = Noise::Uniform { radius: 0.1 };
        e.run(&Perturb { noise, key: KEY, samples, images, perturbed: &o.short })
    }),
    ("cross-entropy: too few labels", &["batch logits", "20", "10"], |e, o| {
        let Batch { logits, .. } = &o.batch;
        let (labels, outputs) = (&o.one_word, o.batch.outputs());
        e.run(&CrossEntropy { smoothing: 0.0, scale: 1.0, logits, labels, weights: None, outputs })
    }),
    ("cross-entropy: the gradient over the logits", &["batch logits"], |e, o| {
        let Batch { logits, labels, .. } = &o.batch;
        let outputs = LossOutputs { logit_gradient: logits, ..o.batch.outputs() };
        e.run(&CrossEntropy { smoothing: 0.0, scale: 1.0, logits, labels, weights: None, outputs })
    }),
    ("cross-entropy: weights of another engine", &["another engine"], |e, o| {
        let Batch { logits, labels, .. } = &o.batch;
        let (weights, outputs) = (Some(&o.foreign.losses), o.batch.outputs());
        e.run(&CrossEntropy { smoothing: 0.0, scale: 1.0, logits, labels, weights, outputs })
    }),
    ("divergence: too few target logits", &["short", "20"], |e, o| {
        let (logits, outputs) = (&o.batch.logits, o.batch.outputs());
        e.run(&Divergence { scale: 1.0, target_logits: &o.short, logits, outputs })
    }),
    ("paired loss: too many weights", &["short", "2"], |e, o| {
        let Batch { logits, clean_logits, labels, .. } = &o.batch;
        e.run(&PairedLoss {
            form: PairedForm::Mart,
            divergence: 5.0,
            scale: 1.0,
            clean_logits,
            adversarial_logits: logits,
            labels,
            weights: Some(&o.short),
            outputs: o.batch.paired_outputs(),
        })
    }),
    ("margin loss: targets of another batch", &["one word", "2"], |e, o| {
        let Batch { logits, labels, .. } = &o.batch;
        let margin = Margin::TargetedDlr { targets: &o.one_word };
        e.run(&MarginLoss { margin, logits, labels, outputs: o.batch.outputs() })
    }),
    ("target class: rank 0", &["rank 0", "1 to 9"], |e, o| {
        let Batch { logits, labels, .. } = &o.batch;
        e.run(&TargetClass { rank: 0, logits, labels, targets: &o.words })
    }),
    ("target class: more ranks than wrong classes", &["rank 10", "1 to 9"], |e, o| {
        let Batch { logits, labels, .. } = &o.batch;
        e.run(&TargetClass { rank: 10, logits, labels, targets: &o.words })
    }),
    ("class difference: too few targets", &["one word", "2"], |e, o| {
        let Batch { labels, logit_gradient, .. } = &o.batch;
        e.run(&ClassDifference { labels, targets: &o.one_word, logit_gradient })
    }),
    ("BulletTrain score: too many scores", &["short", "2"], |e, o| {
        let Batch { logits, labels, .. } = &o.batch;
        e.run(&BulletTrainScore { logits, labels, scores: &o.short })
    }),
    ("perturb onto the surface: images of another engine", &["another engine"], |e, o| {
        let Batch { samples, perturbed, .. } = &o.batch;
        let noise = Noise::Surface { radius: 0.1 };
        e.run(&Perturb { noise, key: KEY, samples, images: &o.foreign.images, perturbed })
    }),
    ("APGD step: a state of fewer images", &["1 images", "2"], |e, o| {
        let Batch { images, labels, losses, predictions, perturbed, .. } = &o.batch;
        let point = ApgdPoint { images, labels, losses, predictions, perturbed };
        e.run(&ApgdStep { epsilon: 0.1, phase: ApgdPhase::First, point, state: &o.apgd.rows(0..1) })
    }),
    ("FAB step: too short a gradient", &["short", "6144"], |e, o| {
        let (logits, gradient, state) = (&o.batch.logits, &o.short, o.fab());
        e.run(&FabStep { largest_share: 0.1, overshoot: 1.05, logits, gradient, state })
    }),
    ("FAB keep: the closest images over the current ones", &["batch adversarial images"], |e, o| {
        let state = FabState { closest: &o.batch.perturbed, ..o.fab() };
        e.run(&FabKeep { backward: 0.9, logits: &o.batch.logits, state })
    }),
    ("square: a side of 33", &["side 33", "1 to 32"], |e, o| {
        let query = Query { pattern: Pattern::Square { side: 33 }, epsilon: 0.1, key: KEY, number: 1 };
        let (rows, candidates) = (&o.one_word, &o.apgd.best);
        e.run(&SquarePropose { query, rows, state: o.search(), candidates })
    }),
    ("square: no rows", &["no rows"], |e, o| {
        let (rows, logits, candidates) =
            (&o.words.slice(0..0), &o.batch.logits.slice(0..0), &o.apgd.best.slice(0..0));
        e.run(&SquareAccept { rows, logits, candidates, state: o.search() })
    }),
    ("top k: more than there are", &["words", "2", "1"], |e, o| {
        e.run(&SelectTopK { values: &o.margins.slice(0..1), top: &o.words })
    }),
    ("top k: NaN", &["scores", "NaN", "position 1"], |e, o| {
        e.run(&SelectTopK { values: &o.scores, top: &o.one_word })
    }),
    ("at least: fewer positions than values", &["one word", "1", "2"], |e, o| {
        e.run(&SelectAtLeast { values: &o.margins, threshold: 0.0, positions: &o.one_word }).map(drop)
    }),
    ("at least: a threshold that is NaN", &["margins", "threshold is NaN"], |e, o| {
        e.run(&SelectAtLeast { values: &o.margins, threshold: f32::NAN, positions: &o.words }).map(drop)
    }),
    ("at least: NaN", &["scores", "NaN", "position 1"], |e, o| {
        e.run(&SelectAtLeast { values: &o.scores, threshold: 0.0, positions: &o.words }).map(drop)
    }),
    ("rows: of nothing", &["rows of 0 elements"], |e, o| {
        let Batch { logits, logit_gradient, .. } = &o.batch;
        e.run(&GatherRows { from: logits, rows: &o.words, row_len: 0, to: logit_gradient })
    }),
    ("rows: that do not divide the tensor", &["batch logits", "20", "18"], |e, o| {
        let Batch { logits, logit_gradient, .. } = &o.batch;
        e.run(&GatherRows { from: logits, rows: &o.words, row_len: 6, to: logit_gradient })
    }),
    ("rows: scattered into themselves", &["batch logits"], |e, o| {
        let logits = &o.batch.logits;
        e.run(&ScatterRows { from: logits, rows: &o.words, row_len: 10, to: logits })
    }),
    ("row norms: of nothing", &["rows of 0 elements"], |e, o| {
        e.run(&RowNorms { values: &o.batch.logits, row_len: 0, norms: &o.margins })
    }),
    ("an attack in a third slot", &["slot 2", "0 or 1"], |e, o| e.run(&attack(o, Pass::Train { slot: 2 }))),
    ("an attack on a pair", &["pair of train passes", "1 sets", "2"], |e, o| e.run(&attack(o, Pass::Pair))),
    ("an attack with too few labels", &["one word", "2"], |e, o| {
        e.run(&AttackSteps { labels: &o.one_word, ..attack(o, Pass::Eval) })
    }),
    ("forward: a batch that is too large", &["many images", "3 images", "1 to 2"], |e, o| {
        let many = e.alloc::<f32>("many images", 3 * IMAGE_LEN)?;
        e.forward(Pass::Eval, &many, &o.batch.logits)
    }),
    ("forward: no image", &["short", "0 images"], |e, o| e.forward(TRAIN, &o.short, &o.batch.logits)),
    ("forward: too few logits", &["losses", "2", "20"], |e, o| {
        e.forward(Pass::Eval, &o.batch.images, &o.batch.losses)
    }),
    ("forward: images of another engine", &["another engine"], |e, o| {
        e.forward(Pass::Eval, &o.foreign.images, &o.batch.logits)
    }),
    ("forward: a third slot", &["slot 2", "0 or 1"], |e, o| {
        e.forward(Pass::Train { slot: 2 }, &o.batch.images, &o.batch.logits)
    }),
    ("forward: one set for a pair", &["pair", "1 sets", "2"], |e, o| {
        e.forward(Pass::Pair, &o.batch.images, &o.batch.logits)
    }),
    ("forward: two sets for one pass", &["2 sets", "1"], |e, o| {
        let Batch { images, perturbed, logits, clean_logits, .. } = &o.batch;
        e.forward(Pass::Eval, [images, perturbed], [clean_logits, logits])
    }),
    ("forward: both logits of a pair in one place", &["batch logits"], |e, o| {
        let Batch { images, perturbed, logits, .. } = &o.batch;
        e.forward(Pass::Pair, [images, perturbed], [logits, logits])
    }),
    ("backward before any forward", &["evaluation pass", "no forward pass"], |e, o| {
        e.backward(Pass::Eval, &o.batch.logits, GradRequest::images(&o.batch.perturbed))
    }),
    ("a step before any forward", &["train pass 0", "no forward pass"], |e, o| {
        let Batch { logits, images, perturbed, .. } = &o.batch;
        e.backward(TRAIN, logits, GradRequest::step(STEP, images, perturbed))
    }),
    ("features before any forward", &["pair of train passes", "no forward pass"], |e, o| {
        e.features(Pass::Pair, 1, &o.short)
    }),
    ("features of a set that there is not", &["set 1 of 1"], |e, o| e.features(TRAIN, 1, &o.short)),
    ("parameter gradients in evaluation", &["evaluation pass", "expected a train pass"], |e, o| {
        e.forward(Pass::Eval, &o.batch.images, &o.batch.logits)?;
        e.backward(Pass::Eval, &o.batch.logits, GradRequest::PARAMETERS)
    }),
    ("accumulating where there is nothing", &["no parameter gradients"], |e, o| {
        e.forward(TRAIN, &o.batch.images, &o.batch.logits)?;
        e.backward(TRAIN, &o.batch.logits, GradRequest::ADD_PARAMETERS)
    }),
    ("the images' gradient of a pair", &["pair", "one train pass"], |e, o| {
        let Batch { images, perturbed, logits, clean_logits, .. } = &o.batch;
        e.forward(Pass::Pair, [images, perturbed], [clean_logits, logits])?;
        e.backward(Pass::Pair, [clean_logits, logits], GradRequest::images(perturbed))
    }),
    ("backward of another batch", &["batch logits", "10", "20"], |e, o| {
        e.forward(Pass::Eval, &o.batch.images, &o.batch.logits)?;
        let one = o.batch.rows(0..1);
        e.backward(Pass::Eval, &one.logits, GradRequest::images(&one.perturbed))
    }),
    ("evaluation after a train pass", &["fold_batch_norm"], |e, o| {
        e.forward(TRAIN, &o.batch.images, &o.batch.logits)?;
        e.forward(Pass::Eval, &o.batch.images, &o.batch.logits)
    }),
    ("an attack after a train pass", &["fold_batch_norm"], |e, o| {
        e.forward(TRAIN, &o.batch.images, &o.batch.logits)?;
        e.run(&attack(o, Pass::Eval))
    }),
    ("backward after the weights moved", &["train pass 0", "no forward pass"], |e, o| {
        e.forward(TRAIN, &o.batch.images, &o.batch.logits)?;
        e.backward(TRAIN, &o.batch.logits, GradRequest::PARAMETERS)?;
        e.step(&SGD)?;
        e.backward(TRAIN, &o.batch.logits, GradRequest::PARAMETERS)
    }),
    ("a step without gradients", &["no parameter gradients"], |e, _| e.step(&SGD)),
    ("gradients before there are any", &["no parameter gradients"], |e, _| {
        e.weights(WeightSet::Gradients).map(drop)
    }),
    ("the average before there is one", &["no moving average"], |e, _| {
        e.weights(WeightSet::Average).map(drop)
    }),
    ("a fold of the average before there is one", &["no moving average"], |e, _| {
        e.fold_batch_norm(WeightSet::Average)
    }),
    ("a fold of the momentum", &["Momentum", "Live or Average"], |e, _| {
        e.fold_batch_norm(WeightSet::Momentum)
    }),
    ("weights of another network", &["conv1.weight"], |e, _| {
        e.load_weights(&initialise(ResNet::resnet18(64, 10), SEED))
    }),
    ("weights without tensors", &["conv1.weight"], |e, _| e.load_weights(&Weights::default())),
    ("an optimizer's state without tensors", &["conv1.weight"], |e, _| {
        e.load_optimizer(&OptimizerState { momentum: Weights::default(), average: None })
    }),
    ("an average without tensors", &["conv1.weight"], |e, _| {
        let momentum = e.weights(WeightSet::Momentum)?;
        e.load_optimizer(&OptimizerState { momentum, average: Some(Weights::default()) })
    }),
    ("a write of another length", &["short", "3071", "4"], |e, o| e.write(&o.short, &[1.0; 4])),
    ("a write to another engine", &["another engine"], |e, o| e.write(&o.foreign.losses, &[1.0; 2])),
    ("a read from another engine", &["another engine"], |e, o| e.read(&o.foreign.losses).map(drop)),
];

fn attack(operands: &Operands, pass: Pass) -> AttackSteps<'_> {
    let batch = &operands.batch;
    AttackSteps {
        pass,
        loss: AscentLoss::CrossEntropy,
        labels: &batch.labels,
        clean_logits: &batch.clean_logits,
        step: STEP,
        steps: 1,
        images: &batch.images,
        perturbed: &batch.perturbed,
        logits: &batch.logits,
        outputs: batch.outputs(),
    }
}

/// Calls before any weights are there.
const EARLY: &[(&str, Call)] = &[
    ("forward", |e, o| e.forward(TRAIN, &o.batch.images, &o.batch.logits)),
    ("evaluation", |e, o| e.forward(Pass::Eval, &o.batch.images, &o.batch.logits)),
    ("an attack", |e, o| e.run(&attack(o, Pass::Eval))),
    ("a fold", |e, _| e.fold_batch_norm(WeightSet::Live)),
    ("a step", |e, _| e.step(&SGD)),
    ("weights", |e, _| e.weights(WeightSet::Live).map(drop)),
    ("momentum", |e, _| e.optimizer().map(drop)),
    ("an optimizer's state", |e, _| {
        let momentum = initialise(NETWORK, SEED);
        e.load_optimizer(&OptimizerState { momentum, average: None })
    }),
];

#[test]
fn every_device_refuses_the_same_calls_in_the_same_words() {
    let said = [DeviceChoice::Cpu, DeviceChoice::CpuBf16, common::cuda_engine()].map(|device| {
        let mut engine = open(device, NETWORK, BATCH).unwrap();
        let other = open(device, NETWORK, BATCH).unwrap();
        let mut said = Vec::new();
        for (what, named, call) in CALLS {
            // Every call meets an engine that has only loaded and folded.
            engine.load_weights(&initialise(NETWORK, SEED)).unwrap();
            engine.fold_batch_norm(WeightSet::Live).unwrap();
            let operands = Operands::new(&engine, &other);
            let error = call(&mut engine, &operands).expect_err(what).to_string();
            for name in *named {
                assert!(error.contains(name), "{device:?}, {what}: '{error}' does not name '{name}'");
            }
            said.push(format!("{what}: {error}"));
        }
        said
    });
    println!("{}", said[0].join("\n"));
    assert_eq!(said[1], said[0]);
    assert_eq!(said[2], said[0]);
}

#[test]
fn nothing_works_before_there_are_weights() {
    for device in [DeviceChoice::Cpu, common::cuda_engine()] {
        let mut engine = open(device, NETWORK, BATCH).unwrap();
        let other = open(device, NETWORK, BATCH).unwrap();
        let operands = Operands::new(&engine, &other);
        for (what, call) in EARLY {
            let error = call(&mut engine, &operands).expect_err(what);
            assert!(matches!(error, Error::Invalid(_)), "{device:?}, {what}: {error:?}");
            assert_eq!(error.to_string(), "no weights: call load_weights first", "{device:?}, {what}");
        }
    }
}

#[test]
fn a_refused_call_writes_nothing() {
    for device in [DeviceChoice::Cpu, common::cuda_engine()] {
        let mut engine = open(device, NETWORK, BATCH).unwrap();
        let other = open(device, NETWORK, BATCH).unwrap();
        engine.load_weights(&initialise(NETWORK, SEED)).unwrap();
        engine.fold_batch_norm(WeightSet::Live).unwrap();
        let operands = Operands::new(&engine, &other);
        let before = engine.read(&operands.batch.perturbed).unwrap();
        let (labels, outputs) = (&operands.batch.labels, operands.batch.outputs());
        let short = AttackSteps { logits: &operands.short, ..attack(&operands, Pass::Eval) };
        engine.run(&short).unwrap_err();
        let foreign = LossOutputs { losses: &operands.foreign.losses, ..outputs };
        let logits = &operands.batch.logits;
        let loss =
            CrossEntropy { smoothing: 0.0, scale: 1.0, logits, labels, weights: None, outputs: foreign };
        engine.run(&loss).unwrap_err();
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(engine.read(&operands.batch.perturbed).unwrap()), bits(before), "{device:?}");
        assert_eq!(engine.read(logits).unwrap(), [0.25; BATCH * 10], "{device:?}");
        assert_eq!(engine.weights(WeightSet::Live).unwrap(), initialise(NETWORK, SEED), "{device:?}");
    }
}
