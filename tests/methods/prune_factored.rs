//! Atoms in factored form, and by the Gram matrix that is made of their factors, against a pursuit over explicit gradients that solves dense
//! normal equations afresh at every step.

use secateur::engine::{DeviceChoice, Engine, open, open_recorded};
use secateur::model::ResNet;
use secateur::ops::{LastLayerGradients, Term};
use secateur::prune::atoms::Factors;
use secateur::prune::factored::Factored;
use secateur::prune::gram::Gram;
use secateur::prune::pursuit::{Atoms, Limits, Pursuit};
use secateur::prune::{AtomMode, Candidates, GradMatch, RidgeUnit, Subset};

use crate::common::grad_pass::DRAWS;
use crate::common::matrix::{Matrix, dot, pursue_one};
use crate::common::{Random, SEED};
use crate::prune_pursuit::{eliminate, norm};

const FEATURES: usize = 128;

/// Random factors, a row a sample: slopes and features of each term.
#[derive(Clone)]
struct Samples {
    classes: usize,
    len: usize,
    terms: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Samples {
    /// Slopes that lean to one class, and features around a common mean, both mostly in a few directions: atoms that stand in for each other.
    fn new(stream: u32, classes: usize, len: usize, terms: usize) -> Self {
        let mut random = Random::new(stream);
        let mut rows = |width: usize, mean: Vec<f32>, spread: f32| -> Vec<f32> {
            let directions: Vec<Vec<f32>> = (0..3).map(|_| random.normals(width, spread)).collect();
            let mut row = |_| {
                let shares = random.normals(3, 1.0);
                let mut row = random.normals(width, 0.2 * spread);
                row.iter_mut().zip(&mean).for_each(|(value, mean)| *value += mean);
                for (share, direction) in shares.iter().zip(&directions) {
                    row.iter_mut().zip(direction).for_each(|(value, part)| *value += share * part);
                }
                row
            };
            (0..len).flat_map(&mut row).collect()
        };
        let lean = |class| if class == 0 { -1.0 } else { 1.0 / classes as f32 };
        let mut term = || {
            let slopes = rows(classes, (0..classes).map(lean).collect(), 0.3);
            (slopes, rows(FEATURES, vec![0.8; FEATURES], 0.4))
        };
        Self { classes, len, terms: (0..terms).map(|_| term()).collect() }
    }

    fn slopes(&mut self, term: usize, sample: usize) -> &mut [f32] {
        let classes = self.classes;
        &mut self.terms[term].0[sample * classes..][..classes]
    }

    fn features(&mut self, term: usize, sample: usize) -> &mut [f32] {
        &mut self.terms[term].1[sample * FEATURES..][..FEATURES]
    }

    /// Makes some samples copies of others, some zero, and some nearly the mean of two others.
    fn with_dependent_ones(mut self) -> Self {
        for term in 0..self.terms.len() {
            for sample in (0..self.len).step_by(10) {
                let (slopes, features) =
                    (self.slopes(term, sample).to_vec(), self.features(term, sample).to_vec());
                let coarse: Vec<f32> = features.iter().map(|value| (value * 64.0).round() / 64.0).collect();
                self.features(term, sample).copy_from_slice(&coarse);
                // A copy, and nothing.
                self.slopes(term, sample + 1).copy_from_slice(&slopes);
                self.features(term, sample + 1).copy_from_slice(&coarse);
                self.slopes(term, sample + 2).fill(0.0);
                // One with the same slopes, and the mean of the two.
                self.slopes(term, sample + 3).copy_from_slice(&slopes);
                self.slopes(term, sample + 4).copy_from_slice(&slopes);
                let other: Vec<f32> = self
                    .features(term, sample + 3)
                    .iter()
                    .map(|value| (value * 64.0).round() / 64.0)
                    .collect();
                let mut mean: Vec<f32> = coarse.iter().zip(&other).map(|(a, b)| (a + b) / 2.0).collect();
                // Nearly, so that what is left of it may pull.
                mean.iter_mut().step_by(3).for_each(|value| *value += 2f32.powi(-17));
                self.features(term, sample + 3).copy_from_slice(&other);
                self.features(term, sample + 4).copy_from_slice(&mean);
            }
        }
        self
    }

    fn upload(&self, engine: &Engine) -> LastLayerGradients {
        let terms = self.terms.iter().map(|(slopes, features)| Term {
            logit_gradient: engine.upload("logit gradients", slopes).unwrap(),
            features: engine.upload("features", features).unwrap(),
        });
        LastLayerGradients { terms: terms.collect(), len: self.len }
    }

    fn factors(&self) -> Factors {
        let engine = open(DeviceChoice::Cpu, ResNet::resnet18(16, self.classes), 1).unwrap();
        Factors::read(&engine, &self.upload(&engine)).unwrap()
    }

    /// The gradients in full.
    fn explicit(&self) -> Vec<Vec<f64>> {
        let gradient = |sample: usize| {
            let mut all = vec![0.0; self.classes * (FEATURES + 1)];
            for (slopes, features) in &self.terms {
                let features = &features[sample * FEATURES..][..FEATURES];
                for (class, row) in all.chunks_exact_mut(FEATURES + 1).enumerate() {
                    let slope = f64::from(slopes[sample * self.classes + class]);
                    for (value, &feature) in row.iter_mut().zip(features.iter().chain(&[1.0])) {
                        *value += slope * f64::from(feature);
                    }
                }
            }
            all
        };
        (0..self.len).map(gradient).collect()
    }

    /// Half the sum of the gradients at `places`, and noise.
    fn target(&self, stream: u32, explicit: &[Vec<f64>], places: &[u32]) -> Vec<f64> {
        let scale = norm(&explicit[places[0] as usize]) / (explicit[0].len() as f64).sqrt();
        let noise = Random::new(stream).normals(explicit[0].len(), 4.0);
        let mut target: Vec<f64> = noise.into_iter().map(|value| scale * f64::from(value)).collect();
        for &place in places {
            target.iter_mut().zip(&explicit[place as usize]).for_each(|(sum, value)| *sum += 0.5 * value);
        }
        target
    }
}

/// What the plain pursuit finds.
struct Plain {
    atoms: Vec<usize>,
    weights: Vec<f64>,
    residual: f64,
    removals: usize,
    dependent: usize,
}

/// Explicit residuals, and dense normal equations from scratch for every atom that enters and at every step.
fn plain(problem: &Matrix, most: usize, ridge: f64) -> Plain {
    let (atoms, target) = (&problem.atoms, &problem.target);
    let gram: Vec<Vec<f64>> = atoms.iter().map(|a| atoms.iter().map(|b| dot(a, b)).collect()).collect();
    let right: Vec<f64> = atoms.iter().map(|atom| dot(atom, target)).collect();
    let solve = |active: &[usize], right: &dyn Fn(usize) -> f64| {
        let element = |a: usize, b: usize| gram[a][b] + if a == b { ridge } else { 0.0 };
        let matrix = active.iter().map(|&a| active.iter().map(|&b| element(a, b)).collect()).collect();
        eliminate(matrix, active.iter().map(|&a| right(a)).collect())
    };
    let (mut active, mut weights, mut removals) = (Vec::<usize>::new(), Vec::<f64>::new(), 0);
    let mut dependent = vec![false; atoms.len()];
    let mut residual = target.clone();
    while active.len() < most {
        let best = (0..atoms.len()).filter(|atom| !active.contains(atom) && !dependent[*atom]);
        let products = best.map(|atom| (dot(&atoms[atom], &residual), atom));
        let products =
            products.filter(|(product, atom)| *product > 1e-12 * norm(&atoms[*atom]) * norm(target));
        let Some((_, best)) = products.reduce(|a, b| if b.0 > a.0 { b } else { a }) else { break };
        // What the span of the others leaves of it.
        let share = solve(&active, &|other| gram[other][best]);
        let inside: f64 = active.iter().zip(share).map(|(&other, share)| share * gram[other][best]).sum();
        if gram[best][best] + ridge - inside <= 1e-10 * (gram[best][best] + ridge) {
            dependent[best] = true;
            continue;
        }
        active.push(best);
        weights.push(0.0);
        loop {
            let expected = solve(&active, &|atom| right[atom]);
            if expected.iter().all(|&weight| weight > 0.0) {
                weights = expected;
                break;
            }
            let moves = weights.iter().zip(&expected).filter(|(_, expected)| **expected <= 0.0);
            let share = moves.map(|(now, expected)| now / (now - expected)).fold(1.0, f64::min);
            let moved = weights.iter().zip(&expected).map(|(now, expected)| now + share * (expected - now));
            let moved: Vec<f64> = moved.collect();
            let kept: Vec<usize> = (0..active.len()).filter(|&i| moved[i] > 1e-14 * norm(&moved)).collect();
            removals += active.len() - kept.len();
            active = kept.iter().map(|&i| active[i]).collect();
            weights = kept.iter().map(|&i| moved[i]).collect();
        }
        residual = problem.residual(&active, &weights);
    }
    let residual = norm(&residual) / norm(target);
    Plain { atoms: active, weights, residual, removals, dependent: dependent.iter().filter(|d| **d).count() }
}

#[test]
fn both_forms_equal_the_plain_pursuit() {
    println!("seed {SEED}");
    let (mut removals, mut dependent) = (0, 0);
    for (stream, classes, len, terms) in
        [(1, 10, 150, 1), (2, 10, 220, 2), (3, 10, 150, 2), (4, 100, 70, 1), (5, 100, 70, 2), (6, 7, 130, 2)]
    {
        let samples = Samples::new(stream, classes, len, terms);
        let samples = if stream % 2 == 0 { samples } else { samples.with_dependent_ones() };
        let (factors, explicit) = (samples.factors(), samples.explicit());
        // Not all, and not in their order.
        let places: Vec<u32> = (0..len as u32).rev().filter(|place| place % 23 != 5).collect();
        let target = samples.target(50 + stream, &explicit, &places);
        let atoms: Vec<Vec<f64>> = places.iter().map(|&place| explicit[place as usize].clone()).collect();
        let square = atoms.iter().map(|atom| dot(atom, atom)).sum::<f64>() / atoms.len() as f64;
        let problem = Matrix::new(atoms, target.clone());
        for ridge in [0.0, 0.05 * square] {
            for most in [1, 9, len / 3, len] {
                let limits = Limits { atoms: most, ridge, tolerance: 0.0 };
                let expected = plain(&problem, most, ridge);
                let factored = Box::new(Factored::new(&factors, &places, &target));
                let gram = Box::new(Gram::of_samples(&factors, &places, &target));
                let forms: [(&str, Box<dyn Atoms>); 2] = [("factored", factored), ("Gram matrix", gram)];
                for (form, atoms) in forms {
                    let what = format!("stream {stream}, {classes} classes, ridge {ridge}, k {most}, {form}");
                    let found = pursue_one(atoms, limits);
                    assert_eq!(found.atoms, expected.atoms, "{what}");
                    let counts = (found.removals, found.passed_over);
                    assert_eq!(counts, (expected.removals, expected.dependent), "{what}");
                    for (actual, wanted) in found.weights.iter().zip(&expected.weights) {
                        let error = (actual - wanted).abs() / norm(&expected.weights);
                        assert!(error < 1e-9, "{what}: {actual}, expected {wanted}");
                    }
                    let residual = found.residuals.last().unwrap();
                    assert!(
                        (residual - expected.residual).abs() < 1e-10,
                        "{what}: {residual}, {}",
                        expected.residual
                    );
                }
                removals += expected.removals;
                dependent += expected.dependent;
            }
        }
    }
    println!("{removals} removals, {dependent} dependent atoms");
    assert!(removals > 50, "atoms must be given up, or that part is not tested: {removals}");
    assert!(dependent > 5, "atoms must be dependent, or that part is not tested: {dependent}");
}

/// A form is chosen by cost; what it finds is the same.
#[test]
fn the_form_follows_the_shape() {
    println!("seed {SEED}");
    let samples = Samples::new(20, 10, 400, 1);
    let (factors, explicit) = (samples.factors(), samples.explicit());
    for len in [100, 400] {
        let places: Vec<u32> = (0..len).collect();
        let target = samples.target(21, &explicit, &places);
        let limits = Limits { atoms: 60, ridge: 0.0, tolerance: 0.0 };
        let found = pursue_one(factors.atoms(&places, &target), limits);
        let form: Box<dyn Atoms> = match len {
            100 => Box::new(Gram::of_samples(&factors, &places, &target)),
            _ => Box::new(Factored::new(&factors, &places, &target)),
        };
        assert_eq!(found, pursue_one(form, limits), "{len} samples: to the bit");
    }
}

/// Bounds of single precision hold where its range ends: factors from 1e-30 to 1e30 choose as in f64.
#[test]
fn factors_of_any_size_choose_alike() {
    println!("seed {SEED}");
    let samples = Samples::new(30, 10, 200, 2);
    let places: Vec<u32> = (0..200).collect();
    let explicit = samples.explicit();
    let target = samples.target(31, &explicit, &places);
    let limits = Limits { atoms: 50, ridge: 0.0, tolerance: 0.0 };
    let pursue = |samples: &Samples, scale: f64| {
        let target: Vec<f64> = target.iter().map(|value| scale * value).collect();
        pursue_one(Box::new(Factored::new(&samples.factors(), &places, &target)), limits)
    };
    let expected = pursue(&samples, 1.0);
    for exponent in [-100, 100] {
        let mut scaled = samples.clone();
        for (slopes, _) in &mut scaled.terms {
            slopes.iter_mut().for_each(|slope| *slope *= 2f32.powi(exponent));
        }
        // Powers of two are exact, but for their square, which the tolerances do not see.
        assert_eq!(pursue(&scaled, 2f64.powi(exponent)), expected, "slopes of 2^{exponent}");
    }
    // A feature at which single precision overflows makes its estimates unknown, not wrong.
    let mut large = samples.clone();
    for sample in [3, 77] {
        large.features(0, sample)[5] = 3e38;
    }
    let gram = Gram::of_samples(&large.factors(), &places, &target);
    let found = pursue_one(Box::new(Factored::new(&large.factors(), &places, &target)), limits);
    assert_eq!(found.atoms, pursue_one(Box::new(gram), limits).atoms);
}

/// A selection among some hundred samples, whatever the mode.
fn choose(engine: &mut Engine, samples: &Samples, mode: AtomMode, budget: usize, tolerance: f64) -> Subset {
    let positions: Vec<u32> = (0..samples.len as u32).collect();
    let labels: Vec<u32> = positions.iter().map(|place| place % 3).collect();
    let candidates = Candidates {
        samples: &positions,
        labels: &labels,
        classes: samples.classes,
        held_out: &[],
        budget,
        losses: None,
        scores: None,
        key: DRAWS,
    };
    let (ridge_unit, augment) = (RidgeUnit::Relative, None);
    let method = GradMatch { mode, ridge: 0.01, ridge_unit, tolerance, batch: 16, target_draws: 1, augment };
    let gradients = samples.upload(engine);
    method.choose(engine, &candidates, &gradients, &[], &mut || true).unwrap()
}

#[test]
fn no_bit_depends_on_the_number_of_threads() {
    println!("seed {SEED}");
    let samples = Samples::new(40, 10, 720, 1);
    let explicit = samples.explicit();
    let places: Vec<u32> = (0..720).collect();
    let target = samples.target(41, &explicit, &places);
    let run = || -> (Vec<Pursuit>, Vec<Subset>) {
        let factors = samples.factors();
        let limits = Limits { atoms: 200, ridge: 0.0, tolerance: 0.0 };
        let forms: [Box<dyn Atoms>; 2] = [
            Box::new(Factored::new(&factors, &places, &target)),
            Box::new(Gram::of_samples(&factors, &places, &target)),
        ];
        let pursuits = forms.into_iter().map(|atoms| pursue_one(atoms, limits)).collect();
        let mut engine = open(DeviceChoice::Cpu, ResNet::resnet18(16, 10), 1).unwrap();
        let modes = [AtomMode::PerBatch, AtomMode::PerClass, AtomMode::PerSample];
        (pursuits, modes.map(|mode| choose(&mut engine, &samples, mode, 240, 0.0)).to_vec())
    };
    let in_a_pool =
        |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run);
    let expected = in_a_pool(1);
    for (found, other) in expected.0.iter().zip(&expected.0[1..]) {
        assert_eq!((found.atoms.len(), &found.atoms), (200, &other.atoms));
        assert!(found.removals > 0, "atoms must be given up, or that part is not tested");
    }
    for threads in [2, 3] {
        assert!(in_a_pool(threads) == expected, "{threads} threads");
    }
}

/// The factors are read once and the targets summed once: what a device does follows from the samples alone.
#[test]
fn launches_do_not_depend_on_the_budget() {
    println!("seed {SEED}");
    let samples = Samples::new(50, 10, 96, 2);
    for mode in [AtomMode::PerBatch, AtomMode::PerClass, AtomMode::PerSample] {
        let (mut engine, mut recording) =
            open_recorded(DeviceChoice::Emulated, ResNet::resnet18(16, 10), 1).unwrap();
        let mut launches = |budget| {
            recording.start(false).unwrap();
            let subset = choose(&mut engine, &samples, mode, budget, 0.0);
            let record = recording.stop().unwrap();
            (subset.len(), record.launches.iter().map(|launch| launch.kernel).collect::<Vec<_>>())
        };
        let [few, many] = [16, 96].map(&mut launches);
        assert!(few.0 < many.0, "{mode}: {} and {} chosen", few.0, many.0);
        assert_eq!(few.1, many.1, "{mode}: {} atoms and {}", few.0, many.0);
        println!("{mode}: {} launches", few.1.len());
    }
}
