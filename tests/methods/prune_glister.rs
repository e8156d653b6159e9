//! Adv-GLISTER against its definition, the gain of each candidate by finite differences of the held-out loss in f64, and its
//! published configuration against an independent form of it.

use secateur::engine::DeviceChoice;
use secateur::ops::{LastLayerGradients, Term};
use secateur::prune::{
    Candidates, Glister, GradientPart, Greedy, LastLayerView, PruneError, StepAlong, StepSize, Subset, TopK,
};

use crate::common::SEED;
use crate::common::grad_pass::{DRAWS, Subject, fixture};

const CLASSES: usize = 10;
/// The largest gains along the mean of both parameters' gradients.
const PLAIN: Glister = Glister {
    greedy: Greedy::Rounds,
    rounds: 1,
    top_k: TopK::PLAIN,
    gradient: GradientPart::LastLayer,
    step_along: StepAlong::Mean,
    step: StepSize::Relative(1.0),
};

/// One outer product of a sample: logits, their gradient, features with a 1 after them.
struct Factor {
    logits: Vec<f64>,
    gradient: Vec<f64>,
    features: Vec<f64>,
}

/// For each sample its factors: clean and adversarial, or adversarial alone.
fn factors(subject: &mut Subject, samples: &[u32]) -> Vec<Vec<Factor>> {
    subject.grad_pass(|engine, pass| {
        let view = pass.last_layer(engine, samples).unwrap();
        let terms: Vec<_> = (view.gradients.terms.iter().zip(&view.logits))
            .map(|(term, logits)| {
                let read = |tensor| -> Vec<f64> {
                    engine.read::<f32>(tensor).unwrap().into_iter().map(f64::from).collect()
                };
                (read(logits), read(&term.logit_gradient), read(&term.features))
            })
            .collect();
        (0..samples.len())
            .map(|row| {
                let of = |values: &[f64]| {
                    let len = values.len() / samples.len();
                    values[row * len..][..len].to_vec()
                };
                let one = |(logits, gradient, features): &(Vec<f64>, Vec<f64>, Vec<f64>)| {
                    let mut features = of(features);
                    features.push(1.0);
                    Factor { logits: of(logits), gradient: of(gradient), features }
                };
                terms.iter().map(one).collect()
            })
            .collect()
    })
}

/// Adds `factor * g` to a gradient as one vector.
fn add(vector: &mut [f64], sample: &[Factor], factor: f64) {
    for term in sample {
        for (row, gradient) in vector.chunks_exact_mut(term.features.len()).zip(&term.gradient) {
            for (value, feature) in row.iter_mut().zip(&term.features) {
                *value += factor * gradient * feature;
            }
        }
    }
}

/// The mean held-out loss after a step of the last layer: TRADES, or the cross-entropy of the adversarial logits.
fn held_out_loss(held_out: &[Vec<Factor>], labels: &[u32], step: &[f64]) -> f64 {
    let softmax = |term: &Factor| -> Vec<f64> {
        let logits = term.logits.iter().zip(step.chunks_exact(term.features.len()));
        let moved = logits
            .map(|(logit, row)| logit - row.iter().zip(&term.features).map(|(a, b)| a * b).sum::<f64>());
        let powers: Vec<f64> = moved.map(f64::exp).collect();
        let sum: f64 = powers.iter().sum();
        powers.iter().map(|power| power / sum).collect()
    };
    let loss = |(sample, &label): (&Vec<Factor>, &u32)| -> f64 {
        let probabilities: Vec<Vec<f64>> = sample.iter().map(softmax).collect();
        let cross_entropy = -probabilities[0][label as usize].ln();
        match probabilities.as_slice() {
            [p, q] => cross_entropy + 6.0 * p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum::<f64>(),
            _ => cross_entropy,
        }
    };
    held_out.iter().zip(labels).map(loss).sum::<f64>() / labels.len() as f64
}

/// The mean of |h'|^2 + 1, the unit of the step: the 1 lies after the features.
fn mean_square(candidates: &[Vec<Factor>]) -> f64 {
    let squares = candidates
        .iter()
        .map(|sample| sample.last().expect("a term").features.iter().map(|value| value * value).sum::<f64>());
    squares.sum::<f64>() / candidates.len() as f64
}

/// The greedy rounds by brute force; the answer also says how close the closest decision was.
fn brute_force(
    candidates: &[Vec<Factor>],
    held_out: &[Vec<Factor>],
    labels: &[u32],
    budget: usize,
    rounds: usize,
    step_size: f64,
) -> (Vec<usize>, f64) {
    const NUDGE: f64 = 1e-4;
    let len = CLASSES * candidates[0][0].features.len();
    let step_size = step_size / mean_square(candidates);
    let (mut sum, mut chosen, mut closest) = (vec![0.0; len], Vec::<usize>::new(), f64::INFINITY);
    while chosen.len() < budget {
        let step: Vec<f64> = sum.iter().map(|sum| step_size * sum / chosen.len().max(1) as f64).collect();
        let gain = |candidate: &Vec<Factor>| {
            let moved = |nudge: f64| {
                let mut step = step.clone();
                add(&mut step, candidate, nudge);
                held_out_loss(held_out, labels, &step)
            };
            (moved(-NUDGE) - moved(NUDGE)) / (2.0 * NUDGE)
        };
        let gains: Vec<f64> = candidates.iter().map(gain).collect();
        let mut open: Vec<usize> = (0..candidates.len()).filter(|place| !chosen.contains(place)).collect();
        open.sort_by(|&a, &b| gains[b].total_cmp(&gains[a]));
        let take = budget.div_ceil(rounds).min(budget - chosen.len());
        if take < open.len() {
            let (last, next) = (gains[open[take - 1]], gains[open[take]]);
            closest = closest.min((last - next) / last.abs().max(1e-12));
        }
        for &place in &open[..take] {
            add(&mut sum, &candidates[place], 1.0);
            chosen.push(place);
        }
    }
    chosen.sort_unstable();
    (chosen, closest)
}

fn samples(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

#[test]
fn rounds_pick_what_the_definition_picks() {
    for method in ["trades", "pgd-at"] {
        let mut subject =
            Subject::new(DeviceChoice::Cpu, &[&format!("objective.method={method}"), "attack.steps=2"]);
        let (train, held_out) = (samples(0..60), samples(60..78));
        let labels = subject.labels(&held_out);
        let (gradients, held_out_factors) = (factors(&mut subject, &train), factors(&mut subject, &held_out));
        for (rounds, step_size) in [(1, 1.0), (4, 10.0), (9, 40.0)] {
            let (expected, closest) =
                brute_force(&gradients, &held_out_factors, &labels, 18, rounds, step_size);
            // Otherwise rounding could decide, and this test would mean nothing.
            assert!(closest > 1e-5, "{method}, {rounds} rounds: two gains only {closest:e} apart");
            let glister = Glister { rounds, step: StepSize::Relative(step_size), ..PLAIN };
            let actual = subject.select(&glister, &train, &held_out, 18, None).unwrap();
            let expected: Vec<u32> = expected.into_iter().map(|place| train[place]).collect();
            assert_eq!(actual.samples, expected, "{method}, {rounds} rounds, step {step_size}");
            assert!(actual.weights.iter().all(|&weight| weight == 1.0) && actual.residual.is_some());
        }
    }
}

/// Steps of any length change what is chosen, and the pools of the stochastic search still find a subset whose step
/// lowers the held-out loss more than a random one's.
#[test]
fn the_stochastic_search_lowers_the_held_out_loss() {
    let mut subject = Subject::new(DeviceChoice::Cpu, &[]);
    let (train, held_out) = (samples(0..70), samples(70..90));
    let labels = subject.labels(&held_out);
    let (gradients, held_out_factors) = (factors(&mut subject, &train), factors(&mut subject, &held_out));
    let step_size = 1.0 / mean_square(&gradients);
    let loss_behind = |chosen: &[u32]| {
        let mut step = vec![0.0; CLASSES * gradients[0][0].features.len()];
        for &sample in chosen {
            add(&mut step, &gradients[sample as usize], step_size / chosen.len() as f64);
        }
        held_out_loss(&held_out_factors, &labels, &step)
    };
    let glister = Glister { greedy: Greedy::Stochastic, ..PLAIN };
    let actual = subject.select(&glister, &train, &held_out, 14, None).unwrap();
    assert_eq!(actual.len(), 14);
    assert_eq!(actual, subject.select(&glister, &train, &held_out, 14, None).unwrap(), "the same draws");
    let random = loss_behind(&(0..70).step_by(5).collect::<Vec<u32>>());
    let (best, _) = brute_force(&gradients, &held_out_factors, &labels, 14, 14, 1.0);
    let best = loss_behind(&best.into_iter().map(|place| train[place]).collect::<Vec<_>>());
    let actual = loss_behind(&actual.samples);
    println!("seed {SEED}: held-out loss: random {random}, stochastic {actual}, exhaustive {best}");
    assert!(best <= actual && actual < random - 0.5 * (random - best));
}

#[test]
fn the_ends_are_defined() {
    let mut subject = Subject::new(DeviceChoice::Cpu, &[]);
    let (train, held_out) = (samples(0..30), samples(60..70));
    for greedy in [Greedy::Rounds, Greedy::Stochastic] {
        for top_k in [TopK::PLAIN, TopK { temperature: 1.0, class_quotas: true, importance_weights: false }] {
            let glister = Glister { greedy, rounds: 3, top_k, ..PLAIN };
            let mut choose =
                |budget, held_out: &[u32]| subject.select(&glister, &train, held_out, budget, None);
            assert_eq!(choose(0, &held_out).unwrap(), Subset::default());
            for budget in [30, 99] {
                let all = choose(budget, &held_out).unwrap();
                assert_eq!(Subset { residual: None, ..all.clone() }, Subset::uniform(train.clone()));
                assert!(all.residual.is_some_and(|residual| residual < 1e-12), "{all:?}");
            }
            let error = choose(5, &[]).unwrap_err();
            assert!(matches!(&error, PruneError::Invalid(text) if text.contains("held-out")), "{error}");
        }
    }
}

/// The published configuration chooses what an independent form of it does: see scripts/make-selection-fixtures.py.
#[test]
fn the_published_configuration_is_that_of_an_independent_form() {
    for (name, method) in [("ce", "pgd-at"), ("trades", "trades")] {
        let mut subject = Subject::new(DeviceChoice::Cpu, &[&format!("objective.method={method}")]);
        let terms = if name == "ce" { 1 } else { 2 };
        let classes =
            |name: &str| -> Vec<u32> { fixture::<i64>(name).into_iter().map(|class| class as u32).collect() };
        let (labels, held_labels) =
            (classes(&format!("{name}.labels")), classes(&format!("{name}.held_out.labels")));
        let places: Vec<u32> = (0..labels.len() as u32).collect();
        for (greedy, rounds) in [(Greedy::Stochastic, 1), (Greedy::Rounds, 6)] {
            let glister = Glister {
                greedy,
                rounds,
                gradient: GradientPart::Bias,
                step_along: StepAlong::Sum,
                step: StepSize::Absolute(0.1),
                ..PLAIN
            };
            let expected = classes(&format!("{name}.{}", greedy.name()));
            let actual = subject.grad_pass(|engine, pass| {
                let width = engine.network().features();
                // Features that the bias must not see.
                let features = |len| engine.upload("features", &vec![0.7f32; len * width]).unwrap();
                let (of_candidates, of_held_out) = (features(labels.len()), features(held_labels.len()));
                let upload = |engine: &secateur::engine::Engine, values: &[f32]| {
                    engine.upload("values", values).unwrap()
                };
                let term = |values: &[f32], features: &_| Term {
                    logit_gradient: upload(engine, values),
                    features: Clone::clone(features),
                };
                let of = |kind: &str, at: usize| fixture::<f32>(&format!("{name}.{kind}.{at}"));
                let gradients = LastLayerGradients {
                    terms: (0..terms).map(|at| term(&of("gradients", at), &of_candidates)).collect(),
                    len: labels.len(),
                };
                let blank = vec![0.0; held_labels.len() * CLASSES];
                let held_out = LastLayerView {
                    gradients: LastLayerGradients {
                        terms: (0..terms).map(|_| term(&blank, &of_held_out)).collect(),
                        len: held_labels.len(),
                    },
                    logits: (0..terms).map(|at| upload(engine, &of("held_out", at))).collect(),
                    labels: engine.upload("labels", &held_labels).unwrap(),
                    losses: upload(engine, &vec![0.0; held_labels.len()]),
                };
                let candidates = Candidates {
                    scores: None,
                    samples: &places,
                    labels: &labels,
                    classes: CLASSES,
                    held_out: &[],
                    budget: expected.len(),
                    losses: None,
                    key: DRAWS,
                };
                glister.choose(engine, &candidates, pass, gradients, held_out).unwrap()
            });
            assert_eq!(actual.samples, expected, "{name}, {greedy}");
        }
    }
}

/// Noise and quotas on the gains: each class has its share, and the same request gives the same subset.
#[test]
fn perturbed_gains_keep_the_shares_of_the_classes() {
    let mut subject = Subject::new(DeviceChoice::Cpu, &[]);
    let (train, held_out) = (samples(0..70), samples(70..90));
    let labels = subject.labels(&train);
    for greedy in [Greedy::Rounds, Greedy::Stochastic] {
        for importance_weights in [false, greedy == Greedy::Rounds] {
            let top_k = TopK { temperature: 1.0, class_quotas: true, importance_weights };
            let glister = Glister { greedy, rounds: 4, top_k, ..PLAIN };
            let actual = subject.select(&glister, &train, &held_out, 30, None).unwrap();
            let mut counts = [0; CLASSES];
            for &sample in &actual.samples {
                counts[labels[sample as usize] as usize] += 1;
            }
            // Seven candidates a class.
            assert_eq!(counts, [3; CLASSES], "{greedy}");
            assert_eq!(actual, subject.select(&glister, &train, &held_out, 30, None).unwrap(), "{greedy}");
            let mean = actual.weights.iter().sum::<f32>() / 30.0;
            assert!(
                (mean - 1.0).abs() < 1e-5 && importance_weights == (actual.weights[0] != 1.0),
                "{greedy}"
            );
        }
    }
}
