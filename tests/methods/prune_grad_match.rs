//! Adv-GRAD-MATCH on a small network: each kind of atom against a pursuit over explicit gradients, and the faults of public
//! code that it must not have.

use std::collections::BTreeSet;

use secateur::data::order::{epoch_order, shuffled};
use secateur::engine::{DeviceChoice, Engine, open};
use secateur::model::ResNet;
use secateur::ops::{Augment, LastLayerGradients, Padding, Term};
use secateur::prune::{AtomMode, Candidates, GradMatch, PruneError, RidgeUnit, Subset};

use crate::common::grad_pass::{DRAWS, Subject};
use crate::common::matrix::{Matrix, dot};
use crate::common::{Random, SEED};

const CLASSES: usize = 10;
const MODES: [AtomMode; 3] = [AtomMode::PerBatch, AtomMode::PerClass, AtomMode::PerSample];

fn method(mode: AtomMode, ridge: f64) -> GradMatch {
    GradMatch {
        mode,
        ridge,
        ridge_unit: RidgeUnit::Relative,
        tolerance: 0.0,
        batch: 8,
        target_draws: 1,
        augment: None,
    }
}

/// `sum over the terms of dz (x) [h, 1]` of every sample, written out.
fn explicit(engine: &Engine, gradients: &LastLayerGradients) -> Vec<Vec<f64>> {
    let network = engine.network();
    let (classes, features) = (network.classes, network.features());
    let mut all = vec![vec![0.0; classes * (features + 1)]; gradients.len];
    for term in &gradients.terms {
        let (slopes, inputs) =
            (engine.read(&term.logit_gradient).unwrap(), engine.read(&term.features).unwrap());
        for (sample, gradient) in all.iter_mut().enumerate() {
            for (class, row) in gradient.chunks_exact_mut(features + 1).enumerate() {
                let slope = f64::from(slopes[sample * classes + class]);
                for (value, &input) in row.iter_mut().zip(&inputs[sample * features..][..features]) {
                    *value += slope * f64::from(input);
                }
                row[features] += slope;
            }
        }
    }
    all
}

fn sum<'a>(vectors: impl IntoIterator<Item = &'a Vec<f64>>) -> Vec<f64> {
    vectors
        .into_iter()
        .cloned()
        .reduce(|a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect())
        .expect("one vector at least")
}

/// The pursuit over these explicit atoms, their sum the target: atoms with weights, and residuals with the target's square.
fn match_sum(atoms: Vec<Vec<f64>>, most: usize, ridge: f64) -> (Vec<(usize, f64)>, f64, Vec<f64>) {
    let mean_square = atoms.iter().map(|atom| dot(atom, atom)).sum::<f64>() / atoms.len() as f64;
    let target = sum(&atoms);
    let square = dot(&target, &target);
    let found = Matrix::new(atoms, target).pursue(most, ridge * mean_square, 0.0);
    (found.atoms.into_iter().zip(found.weights).collect(), square, found.residuals)
}

/// The subset is `expected` but for rounding and the scale of the weights.
fn assert_subset(what: &str, actual: &Subset, mut expected: Vec<(u32, f64)>) {
    expected.sort_unstable_by_key(|&(sample, _)| sample);
    let samples: Vec<u32> = expected.iter().map(|&(sample, _)| sample).collect();
    assert_eq!(actual.samples, samples, "{what}");
    let mean = expected.iter().map(|(_, weight)| weight).sum::<f64>() / expected.len() as f64;
    for (&actual, (sample, weight)) in actual.weights.iter().zip(&expected) {
        assert!(
            (f64::from(actual) - weight / mean).abs() < 1e-5,
            "{what}, {sample}: {actual}, {}",
            weight / mean
        );
    }
}

fn assert_residuals(what: &str, actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (actual, expected) in actual.iter().zip(expected) {
        assert!((actual - expected).abs() < 1e-7, "{what}: {actual} and {expected}");
    }
}

/// A subject, its candidates, and their explicit gradients.
fn subject(overrides: &[&str]) -> (Subject, Vec<u32>, Vec<Vec<f64>>) {
    let mut subject = Subject::new(DeviceChoice::Cpu, overrides);
    let samples: Vec<u32> = (0..90).filter(|sample| sample % 7 != 3).collect();
    let gradients = subject.grad_pass(|engine, pass| {
        let view = pass.last_layer(engine, &samples).unwrap();
        explicit(engine, &view.gradients)
    });
    (subject, samples, gradients)
}

#[test]
fn each_kind_of_atom_equals_the_pursuit_over_explicit_gradients() {
    for overrides in [&["objective.method=trades"][..], &["objective.method=pgd-at"]] {
        let (mut subject, samples, gradients) = subject(overrides);
        let labels = subject.labels(&samples);
        for (ridge, budget) in [(0.0, 30), (0.5, 30), (0.0, 8), (0.1, samples.len())] {
            let what = |mode| format!("{overrides:?}, {mode}, ridge {ridge}, k {budget}");

            let actual =
                subject.select(&method(AtomMode::PerSample, ridge), &samples, &[], budget, None).unwrap();
            let (found, _, residuals) = match_sum(gradients.clone(), budget, ridge);
            let named = found.iter().map(|&(atom, weight)| (samples[atom], weight)).collect();
            assert_subset(&what("samples"), &actual, named);
            assert_residuals(&what("samples"), &actual.residuals, &residuals);

            let actual =
                subject.select(&method(AtomMode::PerClass, ridge), &samples, &[], budget, None).unwrap();
            let mut expected = Vec::new();
            let mut traces = Vec::new();
            for class in 0..CLASSES as u32 {
                let places: Vec<usize> = (0..samples.len()).filter(|&at| labels[at] == class).collect();
                // Ten in a row hold one of each class, and a seventh of all is missing: 7 to 8 samples a class.
                let share = (budget * places.len()) as f64 / samples.len() as f64;
                let taken =
                    actual.samples.iter().filter(|&&sample| subject.images.labels[sample as usize] == class);
                let taken = taken.count();
                assert!((taken as f64) < share + 1.0, "class {class}: {taken} of {share}");
                let atoms = places.iter().map(|&at| gradients[at].clone()).collect();
                let (found, square, residuals) = match_sum(atoms, taken, ridge);
                assert_eq!(found.len(), taken, "class {class}");
                expected.extend(found.iter().map(|&(atom, weight)| (samples[places[atom]], weight)));
                traces.push((square, residuals));
            }
            assert_subset(&what("classes"), &actual, expected);
            if ridge == 0.0 {
                let total: f64 = traces.iter().map(|(square, _)| square).sum();
                let left: f64 = (traces.iter())
                    .map(|(square, residuals)| square * residuals.last().copied().unwrap_or(1.0).powi(2))
                    .sum();
                let expected = (left / total).sqrt();
                let last = actual.residuals.last().unwrap();
                assert!((last - expected).abs() < 1e-7, "{}: {last} and {expected}", what("classes"));
            }

            let actual =
                subject.select(&method(AtomMode::PerBatch, ridge), &samples, &[], budget, None).unwrap();
            let places: Vec<u32> = (0..samples.len() as u32).collect();
            let order = shuffled(DRAWS, &places);
            let batches: Vec<&[u32]> = order.chunks(8).collect();
            assert_ne!(batches.last().unwrap().len(), 8, "a short batch too");
            let atoms =
                batches.iter().map(|batch| sum(batch.iter().map(|&at| &gradients[at as usize]))).collect();
            let most = if budget == samples.len() { batches.len() } else { budget / 8 };
            let (found, _, residuals) = match_sum(atoms, most, ridge);
            let named = found.iter().flat_map(|&(atom, weight)| {
                batches[atom].iter().map(move |&at| (at, weight)).collect::<Vec<_>>()
            });
            let named = named.map(|(at, weight)| (samples[at as usize], weight)).collect();
            assert_subset(&what("batches"), &actual, named);
            assert_residuals(&what("batches"), &actual.residuals, &residuals);
        }
    }
}

/// The residual that is recorded is that of the weighted sum over all classes and atoms, written out.
#[test]
fn the_residual_is_that_of_the_whole_gradient() {
    for overrides in [&["objective.method=trades"][..], &["objective.method=pgd-at"]] {
        let (mut subject, samples, gradients) = subject(overrides);
        let target = sum(&gradients);
        for mode in MODES {
            for ridge in [0.0, 0.05, 0.5] {
                let actual = subject.select(&method(mode, ridge), &samples, &[], 30, None).unwrap();
                let scale = actual.scale.unwrap();
                let mut left = target.clone();
                for (sample, &weight) in actual.samples.iter().zip(&actual.weights) {
                    let gradient = &gradients[samples.binary_search(sample).unwrap()];
                    left.iter_mut()
                        .zip(gradient)
                        .for_each(|(left, g)| *left -= scale * f64::from(weight) * g);
                }
                let expected = (dot(&left, &left) / dot(&target, &target)).sqrt();
                let residual = actual.residual.unwrap();
                assert!((residual - expected).abs() < 1e-6, "{mode}, {ridge}: {residual} and {expected}");
                let of_pursuits = *actual.residuals.last().unwrap();
                match mode {
                    // The targets of the classes and what is left of them cancel in the sums, each to another part.
                    AtomMode::PerClass => {
                        assert!((residual / of_pursuits - 1.0).abs() > 0.02, "{residual}, {of_pursuits}")
                    }
                    _ => assert!((residual - of_pursuits).abs() < 1e-4, "{residual}, {of_pursuits}"),
                }
            }
        }
    }
}

/// The published number is added to the Gram matrix as it is.
#[test]
fn an_absolute_ridge_is_that_number() {
    let (mut subject, samples, gradients) = subject(&[]);
    let mean_square = gradients.iter().map(|g| dot(g, g)).sum::<f64>() / gradients.len() as f64;
    let relative = method(AtomMode::PerSample, 0.2);
    let absolute = GradMatch { ridge: 0.2 * mean_square, ridge_unit: RidgeUnit::Absolute, ..relative };
    let mut choose = |method: &GradMatch| subject.select(method, &samples, &[], 30, None).unwrap();
    let (a, b) = (choose(&relative), choose(&absolute));
    assert_eq!(a.samples, b.samples);
    assert!(a.weights.iter().zip(&b.weights).all(|(a, b)| (a - b).abs() < 1e-5));
    let unscaled = GradMatch { ridge_unit: RidgeUnit::Absolute, ..relative };
    assert_ne!(choose(&unscaled).weights, a.weights, "the unit matters");
}

/// Of budgets that grow, each leaves less; all candidates leave nothing, and then each counts the same.
#[test]
fn a_larger_budget_matches_better() {
    let (mut subject, samples, gradients) = subject(&[]);
    let target = sum(&gradients);
    for mode in MODES {
        let mut last = f64::INFINITY;
        for budget in [8, 16, 32, samples.len()] {
            let chosen = subject.select(&method(mode, 0.0), &samples, &[], budget, None).unwrap();
            assert!(chosen.len() <= budget, "{mode}");
            assert!(
                chosen.residuals.windows(2).all(|pair| pair[1] <= pair[0]),
                "{mode}: {:?}",
                chosen.residuals
            );
            let left = *chosen.residuals.last().unwrap();
            assert!(left < last, "{mode}, k {budget}: {left} after {last}");
            last = left;
            // What training sees: the direction of the weighted gradient.
            let weighted = chosen.samples.iter().zip(&chosen.weights).map(|(sample, &weight)| {
                let at = samples.binary_search(sample).unwrap();
                gradients[at].iter().map(|value| f64::from(weight) * value).collect::<Vec<f64>>()
            });
            let weighted = sum(&weighted.collect::<Vec<_>>());
            let cosine = dot(&weighted, &target) / (dot(&weighted, &weighted) * dot(&target, &target)).sqrt();
            // Per class the scales of the classes' sums differ by what is left of each.
            let floor =
                (1.0 - left * left).max(0.0).sqrt() - if mode == AtomMode::PerClass { 0.1 } else { 1e-4 };
            assert!(cosine > floor, "{mode}, k {budget}: cosine {cosine}, residual {left}");
        }
        assert!(last < 1e-4, "{mode}: {last}");
    }
}

/// Weights over the whole subset have mean 1 and do not cancel in a minibatch, whose samples come from several atoms.
#[test]
fn minibatches_mix_atoms() {
    let (mut subject, samples, _) = subject(&[]);
    let whole_batches = &samples[..72];
    let chosen = subject.select(&method(AtomMode::PerBatch, 0.0), whole_batches, &[], 48, None).unwrap();
    assert_eq!(chosen.len(), 48);
    assert!(chosen.samples.windows(2).all(|pair| pair[0] < pair[1]), "ascending, none twice");
    let mean = chosen.weights.iter().map(|&weight| f64::from(weight)).sum::<f64>() / 48.0;
    assert!((mean - 1.0).abs() < 1e-6, "{mean}");
    let weight = |sample: &u32| chosen.weights[chosen.samples.binary_search(sample).unwrap()].to_bits();
    assert_eq!(chosen.samples.iter().map(weight).collect::<BTreeSet<u32>>().len(), 6, "one weight an atom");
    for minibatch in epoch_order(5, 0, &chosen.samples).chunks(8) {
        let weights: BTreeSet<u32> = minibatch.iter().map(weight).collect();
        assert!(weights.len() >= 3, "a minibatch with {} weights", weights.len());
    }
}

/// An early end is kept: nothing is filled up.
#[test]
fn a_pursuit_that_is_near_enough_ends() {
    let (mut subject, samples, _) = subject(&[]);
    for mode in MODES {
        let early = GradMatch { tolerance: 0.3, ..method(mode, 0.0) };
        let chosen = subject.select(&early, &samples, &[], samples.len(), None).unwrap();
        assert!(!chosen.is_empty() && chosen.len() < samples.len() / 2, "{mode}: {}", chosen.len());
        let (last, before) = chosen.residuals.split_last().unwrap();
        assert!(
            *last <= 0.3 && before.iter().all(|&left| left > 0.3 || mode == AtomMode::PerClass),
            "{mode}"
        );
    }
}

#[test]
fn the_same_request_gives_the_same_subset() {
    let (mut subject, samples, _) = subject(&[]);
    for mode in MODES {
        let first = subject.select(&method(mode, 0.2), &samples, &[], 40, None).unwrap();
        assert_eq!(first, subject.select(&method(mode, 0.2), &samples, &[], 40, None).unwrap(), "{mode}");
    }
}

#[test]
fn ends_of_the_budget_and_missing_classes_are_defined() {
    let (mut subject, samples, _) = subject(&[]);
    for mode in MODES {
        assert_eq!(subject.select(&method(mode, 0.0), &samples, &[], 0, None).unwrap(), Subset::default());
        assert_eq!(subject.select(&method(mode, 0.0), &[], &[], 9, None).unwrap(), Subset::default());
        // More than there are is all.
        let all = subject.select(&method(mode, 0.0), &samples, &[], samples.len(), None).unwrap();
        assert_eq!(subject.select(&method(mode, 0.0), &samples, &[], 1000, None).unwrap(), all, "{mode}");
        // Classes 2 and 6 are missing.
        let labels = subject.labels(&samples);
        let some = samples.iter().zip(labels).filter(|(_, label)| !matches!(label, 2 | 6));
        let some: Vec<u32> = some.map(|(&sample, _)| sample).collect();
        let chosen = subject.select(&method(mode, 0.0), &some, &[], 24, None).unwrap();
        assert!(!chosen.is_empty() && chosen.len() <= 24);
        assert!(chosen.samples.iter().all(|sample| some.contains(sample)));
    }
    // Fewer candidates than one batch are a batch.
    let few = subject.select(&method(AtomMode::PerBatch, 0.0), &samples[..5], &[], 5, None).unwrap();
    assert_eq!((few.samples, few.weights), (samples[..5].to_vec(), vec![1.0; 5]));
}

#[test]
fn parameters_out_of_range_are_refused_before_any_work() {
    let (mut subject, samples, _) = subject(&[]);
    let good = method(AtomMode::PerBatch, 0.0);
    for (bad, budget, expected) in [
        (GradMatch { ridge: -0.5, ..good }, 40, "ridge -0.5, expected a finite number, 0 at least"),
        (GradMatch { ridge: f64::NAN, ..good }, 40, "ridge NaN"),
        (GradMatch { tolerance: 1.0, ..good }, 40, "tolerance 1, expected 0 at least and below 1"),
        (GradMatch { tolerance: -0.1, ..good }, 40, "tolerance -0.1"),
        (GradMatch { batch: 0, ..good }, 40, "batches of 0 samples"),
        (GradMatch { batch: 50, ..good }, 40, "a budget of 40 samples, expected one batch of 50 at least"),
    ] {
        let error = subject.select(&bad, &samples, &[], budget, None).unwrap_err();
        assert!(matches!(&error, PruneError::Invalid(text) if text.contains(expected)), "{error}");
    }
}

/// Two terms of random factors for 40 samples of 10 classes.
struct Factors {
    engine: Engine,
    samples: Vec<u32>,
    labels: Vec<u32>,
    slopes: [Vec<f32>; 2],
    features: [Vec<f32>; 2],
}

impl Factors {
    fn new() -> Self {
        println!("seed {SEED}");
        let network = ResNet::resnet18(16, CLASSES);
        let mut random = Random::new(7);
        let mut draw = |len: usize| [random.normals(len, 1.0), random.uniforms(len, 0.0, 1.0)];
        let [a, _] = draw(40 * CLASSES);
        let [b, _] = draw(40 * CLASSES);
        let [_, c] = draw(40 * network.features());
        let [_, d] = draw(40 * network.features());
        Self {
            engine: open(DeviceChoice::Cpu, network, 1).unwrap(),
            samples: (0..40).map(|place| 100 + 3 * place).collect(),
            labels: (0..40).map(|place| place % 10).collect(),
            slopes: [a, b],
            features: [c, d],
        }
    }

    fn choose(&mut self, method: &GradMatch, budget: usize) -> Result<Subset, PruneError> {
        self.choose_while(method, budget, &mut || true)
    }

    fn choose_while(
        &mut self,
        method: &GradMatch,
        budget: usize,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Subset, PruneError> {
        self.choose_towards(method, budget, &[], go_on)
    }

    /// The gradients of these factors in the memory of `engine`.
    fn gradients(&self, engine: &Engine) -> LastLayerGradients {
        let terms = self.slopes.iter().zip(&self.features).map(|(slopes, features)| Term {
            logit_gradient: engine.upload("logit gradients", slopes).unwrap(),
            features: engine.upload("features", features).unwrap(),
        });
        LastLayerGradients { terms: terms.collect(), len: 40 }
    }

    /// The target is the mean over these factors and `further` ones.
    fn choose_towards(
        &mut self,
        method: &GradMatch,
        budget: usize,
        further: &[Factors],
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Subset, PruneError> {
        let gradients = self.gradients(&self.engine);
        let further: Vec<_> = further.iter().map(|factors| factors.gradients(&self.engine)).collect();
        let engine = &mut self.engine;
        let candidates = Candidates {
            samples: &self.samples,
            labels: &self.labels,
            classes: CLASSES,
            held_out: &[],
            budget,
            losses: None,
            scores: None,
            key: DRAWS,
        };
        method.choose(engine, &candidates, &gradients, &further, go_on)
    }
}

#[test]
fn a_gradient_that_is_not_finite_names_its_image() {
    for (place, value) in [(17, f32::NAN), (3, f32::INFINITY)] {
        let mut factors = Factors::new();
        let row = factors.features[1].len() / 40;
        factors.features[1][place * row + 4] = value;
        for mode in MODES {
            let error = factors.choose(&method(mode, 0.0), 16).unwrap_err().to_string();
            assert!(error.contains(&format!("training image {}", 100 + 3 * place)), "{error}");
        }
    }
}

/// A ridge is a share of the gradients' own size: eight times the loss is the same problem.
#[test]
fn the_scale_of_the_loss_does_not_matter() {
    for mode in MODES {
        let mut factors = Factors::new();
        let chosen = factors.choose(&method(mode, 0.7), 24).unwrap();
        for slopes in &mut factors.slopes {
            slopes.iter_mut().for_each(|slope| *slope *= 8.0);
        }
        assert_eq!(
            factors.choose(&method(mode, 0.7), 24).unwrap(),
            chosen,
            "{mode}: powers of two are exact"
        );
        assert_ne!(factors.choose(&method(mode, 0.0), 24).unwrap(), chosen, "{mode}: and the ridge matters");
    }
}

/// Copies of a sample share no place: the first of them stands for all.
#[test]
fn copies_are_chosen_once() {
    for mode in [AtomMode::PerClass, AtomMode::PerSample] {
        let mut factors = Factors::new();
        // Samples 10.. are copies of the first ten, one a class.
        for values in factors.slopes.iter_mut().chain(&mut factors.features) {
            let period = values.len() / 4;
            for at in period..values.len() {
                values[at] = values[at % period];
            }
        }
        let chosen = factors.choose(&method(mode, 0.0), 40).unwrap();
        assert_eq!(chosen.samples, (0..10).map(|place| 100 + 3 * place).collect::<Vec<u32>>(), "{mode}");
        assert!(
            chosen.weights.iter().all(|weight| (weight - 1.0).abs() < 1e-5),
            "{mode}: {:?}",
            chosen.weights
        );
    }
}

/// Where the gradients ask for nothing there is no reason to prefer a sample: a random subset, the same each time.
#[test]
fn no_gradient_at_all_gives_a_random_subset() {
    for mode in MODES {
        let mut factors = Factors::new();
        factors.slopes = [vec![0.0; 40 * CLASSES], vec![0.0; 40 * CLASSES]];
        let chosen = factors.choose(&method(mode, 0.5), 16).unwrap();
        assert_eq!((chosen.len(), chosen.weights.as_slice()), (16, &[1.0; 16][..]), "{mode}");
        assert!(chosen.residuals.is_empty() && chosen.samples != factors.samples[..16]);
        assert_eq!(factors.choose(&method(mode, 0.5), 16).unwrap(), chosen);
    }
    // One class without a gradient gives nothing, the others what they always give.
    let mut factors = Factors::new();
    let all = factors.choose(&method(AtomMode::PerClass, 0.0), 20).unwrap();
    for slopes in &mut factors.slopes {
        for place in (4..40).step_by(10) {
            slopes[place * CLASSES..][..CLASSES].fill(0.0);
        }
    }
    let others = factors.choose(&method(AtomMode::PerClass, 0.0), 20).unwrap();
    let kept: Vec<u32> = all.samples.iter().copied().filter(|sample| (sample - 100) / 3 % 10 != 4).collect();
    assert_eq!(others.samples, kept);
}

/// The gradients of several draws of the same samples: atoms of the first, and a target that is the mean of all.
#[test]
fn the_target_may_be_a_mean_over_draws() {
    let draws: Vec<Factors> = (0..3)
        .map(|draw| {
            let (mut factors, mut random) = (Factors::new(), Random::new(70 + draw));
            for slopes in &mut factors.slopes {
                for slope in slopes.iter_mut() {
                    *slope += 0.5 * random.normals(1, 1.0)[0];
                }
            }
            factors
        })
        .collect();
    let explicit: Vec<_> =
        draws.iter().map(|factors| explicit(&factors.engine, &factors.gradients(&factors.engine))).collect();
    let mut factors = Factors::new();
    let own = self::explicit(&factors.engine, &factors.gradients(&factors.engine));
    let labels = factors.labels.clone();
    // A pursuit of each mode, in plain vectors, over the atoms at `places`.
    let expected = |places: &[usize], most: usize| {
        let of = |gradients: &[Vec<f64>]| sum(places.iter().map(|&place| &gradients[place]));
        let mut target = of(&own);
        for draw in &explicit {
            target.iter_mut().zip(of(draw)).for_each(|(target, value)| *target += value);
        }
        target.iter_mut().for_each(|value| *value /= 4.0);
        let atoms: Vec<Vec<f64>> = places.iter().map(|&place| own[place].clone()).collect();
        let found = Matrix::new(atoms, target).pursue(most, 0.0, 0.0);
        let named = found.atoms.iter().map(|&atom| 100 + 3 * places[atom] as u32);
        named.zip(found.weights.clone()).collect::<Vec<_>>()
    };
    let all: Vec<usize> = (0..40).collect();
    let go_on = &mut || true;
    let actual = factors.choose_towards(&method(AtomMode::PerSample, 0.0), 16, &draws, go_on).unwrap();
    assert_subset("samples", &actual, expected(&all, 16));
    let alone = factors.choose(&method(AtomMode::PerSample, 0.0), 16).unwrap();
    assert_ne!(actual.samples, alone.samples, "the further draws change nothing");

    let actual = factors.choose_towards(&method(AtomMode::PerClass, 0.0), 20, &draws, go_on).unwrap();
    let of_class = |class: u32| -> Vec<usize> { (0..40).filter(|&at| labels[at] == class).collect() };
    assert_subset("classes", &actual, (0..10).flat_map(|class| expected(&of_class(class), 2)).collect());

    // Per batch an atom is a sum over eight samples; all candidates make the target.
    let batches = shuffled(DRAWS, &(0..40).collect::<Vec<u32>>());
    let batches: Vec<&[u32]> = batches.chunks(8).collect();
    let atoms = batches.iter().map(|batch| sum(batch.iter().map(|&place| &own[place as usize])));
    let mut target = sum(&own);
    for draw in &explicit {
        target.iter_mut().zip(sum(draw)).for_each(|(target, value)| *target += value);
    }
    target.iter_mut().for_each(|value| *value /= 4.0);
    let found = Matrix::new(atoms.collect(), target).pursue(2, 0.0, 0.0);
    let named = found.atoms.iter().zip(&found.weights);
    let named =
        named.flat_map(|(&atom, &weight)| batches[atom].iter().map(move |&at| (100 + 3 * at, weight)));
    let actual = factors.choose_towards(&method(AtomMode::PerBatch, 0.0), 16, &draws, go_on).unwrap();
    assert_subset("batches", &actual, named.collect());
}

/// A selection with a target of two draws takes the gradients twice: as the candidates are, then cropped, flipped and attacked anew.
#[test]
fn further_draws_are_augmented_and_attacked_anew() {
    let (mut subject, samples, _) = subject(&[]);
    let augment = Augment { seed: 5, epoch: 1, padding: Padding::Zero };
    let twice = GradMatch { target_draws: 2, augment: Some(augment), ..method(AtomMode::PerSample, 0.0) };
    let actual = subject.select(&twice, &samples, &[], 30, None).unwrap();
    let labels = subject.labels(&samples);
    let by_hand = subject.grad_pass(|engine, pass| {
        let first = pass.last_layer(engine, &samples).unwrap().gradients;
        pass.augment = Some(augment);
        pass.key.step = 1;
        let second = pass.last_layer(engine, &samples).unwrap().gradients;
        assert_ne!(explicit(engine, &first), explicit(engine, &second));
        let candidates = Candidates {
            samples: &samples,
            labels: &labels,
            classes: CLASSES,
            held_out: &[],
            budget: 30,
            losses: None,
            scores: None,
            key: DRAWS,
        };
        twice.choose(engine, &candidates, &first, &[second], &mut || true).unwrap()
    });
    assert_eq!(actual, by_hand);
    let once = subject.select(&method(AtomMode::PerSample, 0.0), &samples, &[], 30, None).unwrap();
    assert_ne!(actual.samples, once.samples, "the second draw changes nothing");
}

#[test]
fn a_selection_can_be_stopped() {
    for mode in MODES {
        let mut asked = 0;
        let mut go_on = || {
            asked += 1;
            false
        };
        let error = Factors::new().choose_while(&method(mode, 0.0), 24, &mut go_on).unwrap_err();
        assert!(matches!(error, PruneError::Stopped), "{mode}: {error}");
        assert_eq!(asked, 1);
    }
}
