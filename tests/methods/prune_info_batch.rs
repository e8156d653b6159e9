//! InfoBatch: an epoch on its weighted subsets goes as far, and in the same direction, as one on all samples in expectation,
//! and every end of its rule is defined.

use secateur::engine::DeviceChoice;
use secateur::philox::{Key, Purpose};
use secateur::prune::{Candidates, InfoBatch, PruneError, Selection, Subset};

use crate::common::SEED;
use crate::common::grad_pass::{Subject, fixture};

const COUNT: u32 = 80;

fn samples() -> Vec<u32> {
    (0..COUNT).collect()
}

/// Draws of epochs 0, 1, ...: each with a key of its own.
fn draws(losses: &[f32], prune_share: f64, epochs: u32) -> Vec<Subset> {
    let mut subject = Subject::new(DeviceChoice::Cpu, &[]);
    let (samples, labels) = (samples(), subject.labels(&samples()));
    let losses = subject.engine.upload("last losses", losses).unwrap();
    subject.grad_pass(|engine, pass| {
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
            InfoBatch { prune_share }.select(engine, &candidates, pass).unwrap()
        };
        (0..epochs).map(&mut draw).collect()
    })
}

/// The gradient that an epoch walks is the one of an independent form of the published rules: the sum over the minibatches of
/// the plain mean of weight times gradient. Both its norm and its direction.
#[test]
fn an_epoch_walks_the_published_gradient() {
    let losses: Vec<f32> = fixture("info.losses");
    let gradients: Vec<f64> = fixture("info.gradients");
    let length = gradients.len() / losses.len();
    let norm = |vector: &[f64]| vector.iter().map(|value| value * value).sum::<f64>().sqrt();
    let whole: Vec<f64> = (0..length).map(|at| gradients[at..].iter().step_by(length).sum::<f64>()).collect();
    for prune_share in [0.3, 0.5, 0.8] {
        const EPOCHS: u32 = 4000;
        let kept: Vec<i64> = fixture(&format!("info.{prune_share}.kept"));
        let expected: Vec<f64> = fixture(&format!("info.{prune_share}.epoch"));
        let mut actual = vec![0.0; length];
        for subset in draws(&losses, prune_share, EPOCHS) {
            assert_eq!(subset.len() as i64, kept[0], "share {prune_share}");
            assert!(
                subset
                    .weights
                    .iter()
                    .all(|&weight| { weight == 1.0 || weight == (1.0 / (1.0 - prune_share)) as f32 })
            );
            for (&sample, &weight) in subset.samples.iter().zip(&subset.weights) {
                let gradient = &gradients[sample as usize * length..][..length];
                for (sum, value) in actual.iter_mut().zip(gradient) {
                    *sum += f64::from(weight) * value / f64::from(EPOCHS);
                }
            }
        }
        let product: f64 = actual.iter().zip(&expected).map(|(a, b)| a * b).sum();
        let (ratio, cosine) = (norm(&actual) / norm(&expected), product / (norm(&actual) * norm(&expected)));
        println!("seed {SEED}, share {prune_share}: norm {ratio}, cosine {cosine}");
        // The draws of one epoch scatter by about a tenth; 4,000 of them by some thousandths.
        assert!((ratio - 1.0).abs() < 0.01 && cosine > 0.9999, "share {prune_share}: {ratio}, {cosine}");
        // As far as an epoch on all samples, but for the truncation of counts.
        assert!((norm(&expected) / norm(&whole) - 1.0).abs() < 0.05, "share {prune_share}");
    }
}

#[test]
fn the_ends_are_defined() {
    // Nothing known: everything stays.
    let unknown = vec![f32::INFINITY; COUNT as usize];
    let whole = Subset { scale: Some(1.0), ..Subset::uniform(samples()) };
    assert_eq!(draws(&unknown, 0.5, 1)[0], whole);
    // Equal losses: none is below the mean.
    assert_eq!(draws(&vec![1.5; COUNT as usize], 0.5, 1)[0], whole);
    // No pruning.
    let mut losses: Vec<f32> = (0..COUNT).map(|sample| sample as f32).collect();
    assert_eq!(draws(&losses, 0.0, 1)[0], whole);
    // Of one easy sample the share that stays is rounded down to none.
    losses = vec![2.0; COUNT as usize];
    losses[7] = 1.0;
    let others: Vec<u32> = samples().into_iter().filter(|&sample| sample != 7).collect();
    assert_eq!(draws(&losses, 0.5, 1)[0], Subset { scale: Some(1.0), ..Subset::uniform(others) });

    losses[9] = f32::NAN;
    let mut subject = Subject::new(DeviceChoice::Cpu, &[]);
    let error =
        subject.select(&InfoBatch { prune_share: 0.5 }, &samples(), &[], 0, Some(&losses)).unwrap_err();
    assert!(
        matches!(&error, PruneError::Invalid(text) if text.contains("image 9") && text.contains("NaN")),
        "{error}"
    );
    // Without losses from training, those after an attack now.
    let actual = subject.select(&InfoBatch { prune_share: 0.5 }, &samples(), &[], 0, None).unwrap();
    assert!(actual.len() < COUNT as usize && actual.len() > COUNT as usize / 2, "{}", actual.len());
}
