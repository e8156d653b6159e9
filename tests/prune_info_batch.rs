//! InfoBatch: the mean gradient that its weighted subsets give is that of all samples in expectation, and every end of
//! its rule is defined.

mod common;
#[path = "common/survey.rs"]
mod survey;

use common::{Random, SEED};
use secateur::engine::DeviceChoice;
use secateur::philox::{Key, Purpose};
use secateur::prune::{Candidates, InfoBatch, PruneError, Selection, Subset};
use survey::Subject;

const COUNT: u32 = 80;

fn samples() -> Vec<u32> {
    (0..COUNT).collect()
}

/// Draws of epochs 0, 1, ...: each with a key of its own.
fn draws(losses: &[f32], prune_share: f64, epochs: u32) -> Vec<Subset> {
    let mut subject = Subject::new(DeviceChoice::Cpu, &[]);
    let (samples, labels) = (samples(), subject.labels(&samples()));
    let losses = subject.engine.upload("last losses", losses).unwrap();
    subject.survey(|engine, survey| {
        let mut draw = |epoch| {
            let candidates = Candidates {
                samples: &samples,
                labels: &labels,
                classes: 10,
                held_out: &[],
                budget: 0,
                losses: Some(&losses),
                scores: None,
                key: Key { seed: SEED, purpose: Purpose::Selection, epoch, step: 0 },
            };
            InfoBatch { prune_share }.select(engine, &candidates, survey).unwrap()
        };
        (0..epochs).map(&mut draw).collect()
    })
}

/// The mean over a subset of weight times value has the mean over all samples as its expectation.
#[test]
fn the_mean_gradient_is_unbiased() {
    let mut random = Random::new(1);
    let losses: Vec<f32> = random.normals(COUNT as usize, 1.0).iter().map(|normal| normal.exp()).collect();
    let mean = losses.iter().sum::<f32>() / COUNT as f32;
    let easy = losses.iter().filter(|&&loss| loss < mean).count();
    for prune_share in [0.3, 0.5, 0.8] {
        const EPOCHS: u32 = 4000;
        // What each sample's gradient is multiplied with in the mean over all, on average: 1 is unbiased.
        let mut factors = vec![0.0; COUNT as usize];
        for subset in draws(&losses, prune_share, EPOCHS) {
            assert_eq!(
                subset.len(),
                COUNT as usize - easy + ((1.0 - prune_share) * easy as f64).round() as usize
            );
            let total: f64 = subset.weights.iter().map(|&weight| f64::from(weight)).sum();
            assert!((total / subset.len() as f64 - 1.0).abs() < 1e-6);
            for (&sample, &weight) in subset.samples.iter().zip(&subset.weights) {
                let share = f64::from(weight) / subset.len() as f64;
                factors[sample as usize] += share * f64::from(COUNT) / f64::from(EPOCHS);
            }
        }
        for (sample, (factor, loss)) in factors.iter().zip(&losses).enumerate() {
            // A hard sample is always there; an easy one is there or not, five deviations allowed.
            let deviation = match *loss < mean {
                true => (prune_share / (1.0 - prune_share) / f64::from(EPOCHS)).sqrt(),
                false => 1e-6,
            };
            let error = (factor - 1.0).abs();
            assert!(error < 5.0 * deviation, "seed {SEED}, share {prune_share}, sample {sample}: {factor}");
        }
    }
}

#[test]
fn the_ends_are_defined() {
    // Nothing known: everything stays.
    let unknown = vec![f32::INFINITY; COUNT as usize];
    assert_eq!(draws(&unknown, 0.5, 1)[0], Subset::uniform(samples()));
    // Equal losses: none is below the mean.
    assert_eq!(draws(&vec![1.5; COUNT as usize], 0.5, 1)[0], Subset::uniform(samples()));
    // No pruning.
    let mut losses: Vec<f32> = (0..COUNT).map(|sample| sample as f32).collect();
    assert_eq!(draws(&losses, 0.0, 1)[0], Subset::uniform(samples()));
    // One easy sample stays, whatever the share.
    losses = vec![2.0; COUNT as usize];
    losses[7] = 1.0;
    assert_eq!(draws(&losses, 0.99, 1)[0], Subset::uniform(samples()));

    losses[9] = f32::NAN;
    let mut subject = Subject::new(DeviceChoice::Cpu, &[]);
    let error =
        subject.select(&InfoBatch { prune_share: 0.5 }, &samples(), &[], 0, Some(&losses)).unwrap_err();
    assert!(
        matches!(&error, PruneError::Invalid(text) if text.contains("image 9") && text.contains("NaN")),
        "{error}"
    );
    // Without losses from training, those behind an attack now.
    let met = subject.select(&InfoBatch { prune_share: 0.5 }, &samples(), &[], 0, None).unwrap();
    assert!(met.len() < COUNT as usize && met.len() > COUNT as usize / 2, "{}", met.len());
}
