//! The paired losses, the divergence, the confidence score and rows by index, through the engine: against PyTorch, against
//! f64 formulas, and those formulas against finite differences.
//!
//! The fixture is written by `scripts/make-loss-fixtures.py`: PyTorch's autograd of the published codes, in f64.

use safetensors::SafeTensors;
use secateur::engine::{DeviceChoice, Engine, Error, Tensor, open};
use secateur::model::ResNet;
use secateur::ops::{
    BulletTrainScore, CrossEntropy, Divergence, GatherRows, LossOutputs, Margin, MarginLoss, NO_CLASS,
    PairedForm, PairedLoss, PairedLossOutputs, ScatterRows,
};

use crate::common::pairs::{self, Pairs, check};
use crate::common::{Bound, Random, SEED, assert_close};

/// What the fixture script multiplies all gradients by.
const SCALE: f32 = 0.125;
const FORMS: [(PairedForm, f32, &str); 3] = [
    (PairedForm::Trades { smoothing: 0.0 }, 6.0, "trades"),
    (PairedForm::Trades { smoothing: 0.1 }, 6.0, "smoothed_trades"),
    (PairedForm::Mart, 5.0, "mart"),
];
const MAX_BATCH: usize = 32;
const DEVICES: [DeviceChoice; 2] = [DeviceChoice::Cpu, DeviceChoice::Emulated];

fn engine(device: DeviceChoice, classes: usize) -> Engine {
    open(device, ResNet::resnet18(16, classes), MAX_BATCH).unwrap()
}

/// What the losses write, NaN before.
struct Outputs {
    losses: Tensor<f32>,
    predictions: Tensor<u32>,
    clean_gradient: Tensor<f32>,
    adversarial_gradient: Tensor<f32>,
}

impl Outputs {
    fn new(engine: &Engine, batch: usize) -> Self {
        let logits = vec![f32::NAN; batch * engine.network().classes];
        Self {
            losses: engine.upload("losses", &vec![f32::NAN; batch]).unwrap(),
            predictions: engine.upload("predictions", &vec![u32::MAX; batch]).unwrap(),
            clean_gradient: engine.upload("clean gradient", &logits).unwrap(),
            adversarial_gradient: engine.upload("adversarial gradient", &logits).unwrap(),
        }
    }
    fn paired(&self) -> PairedLossOutputs<'_> {
        PairedLossOutputs {
            losses: &self.losses,
            predictions: &self.predictions,
            clean_gradient: &self.clean_gradient,
            adversarial_gradient: &self.adversarial_gradient,
        }
    }
    fn single(&self) -> LossOutputs<'_> {
        LossOutputs {
            losses: &self.losses,
            predictions: &self.predictions,
            logit_gradient: &self.adversarial_gradient,
        }
    }
}

/// The tensors of the fixture, by name.
struct Fixture(Vec<u8>);

impl Fixture {
    fn load() -> Self {
        Self(std::fs::read("tests/fixtures/losses.safetensors").unwrap())
    }
    fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data().to_vec()
    }
    fn f32s(&self, name: &str) -> Vec<f32> {
        self.bytes(name).chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
    }
    fn u32s(&self, name: &str) -> Vec<u32> {
        self.bytes(name).chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
    }
    fn f64s(&self, name: &str) -> Vec<f64> {
        self.f32s(name).into_iter().map(f64::from).collect()
    }
}

/// 1e-5 of each element, as far as f32 logits of +-50 (the last kind of sample in the fixture) have so many digits.
const PYTORCH: Bound = Bound { absolute: 5e-6, relative: 1e-5, whole: 1e-6 };

#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    let fixture = Fixture::load();
    for (device, classes) in DEVICES.iter().flat_map(|device| [10, 100].map(|classes| (*device, classes))) {
        let mut engine = engine(device, classes);
        let of = |name: &str| format!("{classes}.{name}");
        let what = |name: &str| format!("{device:?}, {classes} classes, {name}");
        let clean = engine.upload("clean", &fixture.f32s(&of("clean"))).unwrap();
        let adversarial = engine.upload("adversarial", &fixture.f32s(&of("adversarial"))).unwrap();
        let labels = engine.upload("labels", &fixture.u32s(&of("labels"))).unwrap();
        let weights = engine.upload("weights", &fixture.f32s(&of("weights"))).unwrap();
        for (form, divergence, name) in FORMS {
            let outputs = Outputs::new(&engine, labels.len());
            engine
                .run(&PairedLoss {
                    form,
                    divergence,
                    scale: SCALE,
                    clean_logits: &clean,
                    adversarial_logits: &adversarial,
                    labels: &labels,
                    weights: Some(&weights),
                    outputs: outputs.paired(),
                })
                .unwrap();
            for (part, actual) in [
                ("losses", &outputs.losses),
                ("clean_gradient", &outputs.clean_gradient),
                ("adversarial_gradient", &outputs.adversarial_gradient),
            ] {
                let part = format!("{name}.{part}");
                assert_close(&what(&part), &engine.read(actual).unwrap(), &fixture.f64s(&of(&part)), PYTORCH);
            }
        }
        let outputs = Outputs::new(&engine, labels.len());
        engine
            .run(&Divergence {
                target_logits: &clean,
                logits: &adversarial,
                scale: SCALE,
                outputs: outputs.single(),
            })
            .unwrap();
        for (part, actual) in
            [("losses", &outputs.losses), ("adversarial_gradient", &outputs.adversarial_gradient)]
        {
            let part = format!("divergence.{part}");
            assert_close(&what(&part), &engine.read(actual).unwrap(), &fixture.f64s(&of(&part)), PYTORCH);
        }
        engine.run(&BulletTrainScore { logits: &clean, labels: &labels, scores: &outputs.losses }).unwrap();
        let (scores, expected) =
            (engine.read(&outputs.losses).unwrap(), fixture.f64s(&of("signed_deviation")));
        assert_close(&what("signed deviation"), &scores, &expected, PYTORCH);
        assert!(expected.iter().any(|s| *s > 0.0) && expected.iter().any(|s| *s < 0.0), "one sign only");
    }
}

fn draw(classes: usize, rows: usize) -> Pairs {
    println!("seed {SEED}");
    let mut random = Random::new((classes * 1000 + rows) as u32);
    Pairs::draw(classes, rows, |low, high| random.uniform(low, high))
}

#[test]
fn engines_agree_with_the_formulas_on_extreme_logits_and_ties() {
    for (device, classes) in DEVICES.iter().flat_map(|device| [10, 100].map(|classes| (*device, classes))) {
        let (pairs, mut engine) = (draw(classes, 28), engine(device, classes));
        let clean = engine.upload("clean", &pairs.clean).unwrap();
        let adversarial = engine.upload("adversarial", &pairs.adversarial).unwrap();
        let labels = engine.upload("labels", &pairs.labels).unwrap();
        for (form, divergence, name) in FORMS {
            let what = |part: &str| format!("{device:?}, {name}, {classes} classes, {part}");
            let outputs = Outputs::new(&engine, labels.len());
            engine
                .run(&PairedLoss {
                    form,
                    divergence,
                    scale: SCALE,
                    clean_logits: &clean,
                    adversarial_logits: &adversarial,
                    labels: &labels,
                    weights: None,
                    outputs: outputs.paired(),
                })
                .unwrap();
            let b = f64::from(divergence);
            let (mut losses, mut of_clean, mut of_adversarial) = (Vec::new(), Vec::new(), Vec::new());
            for (z, moved, y) in pairs.rows() {
                losses.push(pairs::paired_loss(form, b, &z, &moved, y));
                let (clean, adversarial) = pairs::paired_gradients(form, b, &z, &moved, y);
                of_clean.extend(clean.iter().map(|g| f64::from(SCALE) * g));
                of_adversarial.extend(adversarial.iter().map(|g| f64::from(SCALE) * g));
            }
            check(&what("losses"), 1, &engine.read(&outputs.losses).unwrap(), &losses);
            check(&what("clean"), classes, &engine.read(&outputs.clean_gradient).unwrap(), &of_clean);
            let actual = engine.read(&outputs.adversarial_gradient).unwrap();
            check(&what("adversarial"), classes, &actual, &of_adversarial);
            assert_eq!(engine.read(&outputs.predictions).unwrap(), pairs.predictions(), "{}", what("argmax"));
        }
        let outputs = Outputs::new(&engine, labels.len());
        engine
            .run(&Divergence {
                target_logits: &clean,
                logits: &adversarial,
                scale: SCALE,
                outputs: outputs.single(),
            })
            .unwrap();
        let losses: Vec<f64> = pairs.rows().map(|(z, moved, _)| pairs::divergence(&z, &moved)).collect();
        let gradient: Vec<f64> =
            pairs.rows().flat_map(|(z, moved, _)| pairs::divergence_gradient(&z, &moved)).collect();
        let gradient: Vec<f64> = gradient.iter().map(|g| f64::from(SCALE) * g).collect();
        let what = |part: &str| format!("{device:?}, divergence, {classes} classes, {part}");
        check(&what("losses"), 1, &engine.read(&outputs.losses).unwrap(), &losses);
        let actual = engine.read(&outputs.adversarial_gradient).unwrap();
        check(&what("gradient"), classes, &actual, &gradient);
        assert_eq!(engine.read(&outputs.predictions).unwrap(), pairs.predictions(), "{}", what("argmax"));

        engine.run(&BulletTrainScore { logits: &clean, labels: &labels, scores: &outputs.losses }).unwrap();
        let scores: Vec<f64> = pairs.rows().map(|(z, _, y)| pairs::bullet_train_score(&z, y)).collect();
        check(&what("signed deviation"), 1, &engine.read(&outputs.losses).unwrap(), &scores);
    }
}

#[test]
fn the_formulas_agree_with_finite_differences() {
    let step = 1e-5;
    for classes in [3, 10] {
        let pairs = draw(classes, 21);
        // With ties the best wrong class changes within a step; logits of +-50 leave nothing to differ.
        let smooth = pairs.rows().enumerate().filter(|(row, _)| row % 7 < 4);
        for (row, (z, moved, y)) in smooth {
            // Surely wrong: 1.0001 - q_k is 1e-4, and a loss from it has an error of 1e-12 to divide by the step.
            let absolute = if row % 7 == 3 { 5e-7 } else { 2e-9 };
            for (form, b, name) in FORMS {
                let b = f64::from(b);
                let (clean, adversarial) = pairs::paired_gradients(form, b, &z, &moved, y);
                for c in 0..classes {
                    let shifted = |values: &[f64], by: f64| {
                        let mut values = values.to_vec();
                        values[c] += by;
                        values
                    };
                    let slope = |loss: &dyn Fn(f64) -> f64| (loss(step) - loss(-step)) / (2.0 * step);
                    let of_clean = slope(&|h| pairs::paired_loss(form, b, &shifted(&z, h), &moved, y));
                    let of_moved = slope(&|h| pairs::paired_loss(form, b, &z, &shifted(&moved, h), y));
                    for (actual, expected) in [(clean[c], of_clean), (adversarial[c], of_moved)] {
                        let error = (actual - expected).abs();
                        assert!(
                            error < absolute + 2e-8 * expected.abs(),
                            "{name}, {classes} classes, row {row}, class {c}: {actual}, {expected} by differences"
                        );
                    }
                    let of_divergence = slope(&|h| pairs::divergence(&z, &shifted(&moved, h)));
                    let error = (pairs::divergence_gradient(&z, &moved)[c] - of_divergence).abs();
                    assert!(error < 2e-9, "divergence, row {row}, class {c}: error {error}");
                }
            }
        }
    }
}

#[test]
fn rows_go_out_and_come_back() {
    for device in DEVICES {
        let mut engine = engine(device, 10);
        let all: Vec<f32> = (0..7 * 5).map(|v| v as f32).collect();
        let from = engine.upload("images", &all).unwrap();
        let rows = engine.upload("rows", &[6u32, 0, 3]).unwrap();
        let part = engine.alloc::<f32>("part", 15).unwrap();
        engine.run(&GatherRows { from: &from, rows: &rows, row_len: 5, to: &part }).unwrap();
        let gathered = engine.read(&part).unwrap();
        assert_eq!(gathered, [&all[30..], &all[..5], &all[15..20]].concat(), "{device:?}");

        let doubled: Vec<f32> = gathered.iter().map(|v| 2.0 * v).collect();
        engine.write(&part, &doubled).unwrap();
        engine.run(&ScatterRows { from: &part, rows: &rows, row_len: 5, to: &from }).unwrap();
        let moved = |i: usize| [0, 3, 6].contains(&(i / 5));
        let expected: Vec<f32> =
            all.iter().enumerate().map(|(i, v)| if moved(i) { 2.0 * v } else { *v }).collect();
        assert_eq!(engine.read(&from).unwrap(), expected, "{device:?}");

        // Views that start inside their storage, of labels.
        let labels = engine.upload("labels", &[1u32, 2, 3, 4, 5]).unwrap();
        let rows = engine.upload("rows", &[3u32, 1]).unwrap();
        let some = engine.upload("some", &[9u32; 4]).unwrap();
        engine
            .run(&GatherRows { from: &labels.slice(1..5), rows: &rows, row_len: 1, to: &some.slice(1..3) })
            .unwrap();
        assert_eq!(engine.read(&some).unwrap(), [9, 5, 3, 9], "{device:?}");
    }
}

#[test]
fn wrong_operands_are_named() {
    for device in DEVICES {
        let mut engine = engine(device, 10);
        let logits = engine.upload("logits", &[0.0f32; 20]).unwrap();
        let labels = engine.upload("labels", &[3u32, 4]).unwrap();
        let outputs = Outputs::new(&engine, 2);
        let three = engine.upload("three weights", &[1.0f32; 3]).unwrap();
        let result = engine.run(&PairedLoss {
            form: PairedForm::Trades { smoothing: 0.0 },
            divergence: 6.0,
            scale: 1.0,
            clean_logits: &logits,
            adversarial_logits: &logits,
            labels: &labels,
            weights: Some(&three),
            outputs: outputs.paired(),
        });
        let error = result.unwrap_err().to_string();
        assert_eq!(error, "three weights: 3 elements, expected 2", "{device:?}");
        let short = logits.slice(0..10);
        let result = engine.run(&Divergence {
            target_logits: &short,
            logits: &logits,
            scale: 1.0,
            outputs: outputs.single(),
        });
        assert!(
            matches!(result, Err(Error::Length { tensor: "logits", actual: 10, expected: 20 })),
            "{result:?}"
        );
        let result = engine.run(&BulletTrainScore { logits: &logits, labels: &labels, scores: &three });
        assert!(matches!(result, Err(Error::Length { tensor: "three weights", actual: 3, expected: 2 })));

        let rows = engine.upload("rows", &[0u32, 1]).unwrap();
        let to = engine.alloc::<f32>("to", 20).unwrap();
        let result = engine.run(&GatherRows { from: &logits, rows: &rows, row_len: 5, to: &to });
        assert!(
            matches!(result, Err(Error::Length { tensor: "to", actual: 20, expected: 10 })),
            "{result:?}"
        );
        let result = engine.run(&GatherRows { from: &logits, rows: &rows, row_len: 9, to: &to });
        assert!(
            matches!(result, Err(Error::Length { tensor: "logits", actual: 20, expected: 18 })),
            "{result:?}"
        );
        let message = engine
            .run(&GatherRows { from: &logits, rows: &rows, row_len: 0, to: &to })
            .unwrap_err()
            .to_string();
        assert!(message.contains("logits: rows of 0 elements"), "{message}");
        let message = engine
            .run(&ScatterRows { from: &logits, rows: &rows, row_len: 10, to: &logits })
            .unwrap_err()
            .to_string();
        assert!(message.contains("logits"), "{message}");
    }
}

#[test]
fn a_label_or_a_row_that_is_not_there_shows_on_every_device() {
    for device in DEVICES {
        let mut engine = engine(device, 10);
        let logits = engine.upload("logits", &[0.0f32; 20]).unwrap();
        let labels = engine.upload("labels", &[3u32, 10]).unwrap();
        let outputs = Outputs::new(&engine, 2);
        for form in [PairedForm::Mart, PairedForm::Trades { smoothing: 0.1 }] {
            engine
                .run(&PairedLoss {
                    form,
                    divergence: 5.0,
                    scale: 1.0,
                    clean_logits: &logits,
                    adversarial_logits: &logits,
                    labels: &labels,
                    weights: None,
                    outputs: outputs.paired(),
                })
                .unwrap();
            let losses = engine.read(&outputs.losses).unwrap();
            assert!(losses[0].is_finite() && losses[1].is_nan(), "{device:?}, {form:?}: {losses:?}");
        }
        let rows = engine.upload("rows", &[1u32, 2]).unwrap();
        let to = engine.alloc::<f32>("to", 20).unwrap();
        engine.run(&GatherRows { from: &logits, rows: &rows, row_len: 10, to: &to }).unwrap();
        let actual = engine.read(&to).unwrap();
        assert!(
            actual[..10] == [0.0; 10] && actual[10..].iter().all(|x| x.is_nan()),
            "{device:?}: {actual:?}"
        );
    }
}

#[test]
fn logits_that_are_not_finite_predict_nothing() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    // A row that is right, then the label's and another logit NaN, infinite and infinitely low.
    let rows = [
        [3.0f32, 1.0, 2.0],
        [nan, 1.0, 2.0],
        [3.0, nan, 2.0],
        [inf, 1.0, 2.0],
        [3.0, -inf, 2.0],
        [3.0, inf, 2.0],
    ];
    for device in DEVICES {
        let mut engine = engine(device, 3);
        let engine = &mut engine;
        let logits = engine.upload("logits", rows.as_flattened()).unwrap();
        let sound = engine.upload("clean logits", &[3.0f32, 1.0, 2.0].repeat(rows.len())).unwrap();
        let labels = engine.upload("labels", &[0u32; 6]).unwrap();
        let outputs = Outputs::new(engine, rows.len());
        let expected = [0, NO_CLASS, NO_CLASS, NO_CLASS, NO_CLASS, NO_CLASS];
        let check = |engine: &Engine, what: &str| {
            assert_eq!(engine.read(&outputs.predictions).unwrap(), expected, "{device:?}: {what}");
            engine.write(&outputs.predictions, &[7; 6]).unwrap();
        };
        engine
            .run(&CrossEntropy {
                smoothing: 0.0,
                scale: 1.0,
                logits: &logits,
                labels: &labels,
                weights: None,
                outputs: outputs.single(),
            })
            .unwrap();
        check(engine, "cross-entropy");
        engine
            .run(&Divergence {
                target_logits: &sound,
                logits: &logits,
                scale: 1.0,
                outputs: outputs.single(),
            })
            .unwrap();
        check(engine, "divergence");
        engine
            .run(&MarginLoss {
                margin: Margin::BestWrong,
                logits: &logits,
                labels: &labels,
                outputs: outputs.single(),
            })
            .unwrap();
        check(engine, "margin");
        for (form, divergence, _) in FORMS {
            engine
                .run(&PairedLoss {
                    form,
                    divergence,
                    scale: 1.0,
                    clean_logits: &sound,
                    adversarial_logits: &logits,
                    labels: &labels,
                    weights: None,
                    outputs: outputs.paired(),
                })
                .unwrap();
            check(engine, &format!("{form:?}"));
        }
        let scores = engine.upload("scores", &[7.0f32; 6]).unwrap();
        engine.run(&BulletTrainScore { logits: &logits, labels: &labels, scores: &scores }).unwrap();
        let scores = engine.read(&scores).unwrap();
        assert!(
            scores[0] > 0.0 && scores[1..].iter().all(|score| score.is_nan() || *score <= 0.0),
            "{device:?}: {scores:?}"
        );
    }
}
