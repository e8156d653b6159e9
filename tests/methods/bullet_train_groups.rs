//! BulletTrain's groups are those of a plain count, its quantile is that of PyTorch.

use secateur::accelerate::{Groups, quantile};
use secateur::philox::{Key, Purpose};

#[test]
fn quantiles_are_those_of_torch() {
    // torch.quantile(values, q), linear interpolation.
    let values = [0.3, -0.1, 0.25, 0.0, -0.2];
    for (q, expected) in [(0.0, -0.2), (0.1, -0.16), (0.25, -0.1), (0.6, 0.1), (0.9, 0.28), (1.0, 0.3)] {
        let actual = quantile(&values, q);
        assert!((actual - expected).abs() < 1e-6, "{q}: {actual}, expected {expected}");
    }
    assert_eq!(quantile(&[0.5], 0.7), 0.5);
}

#[test]
fn groups_are_those_of_a_plain_count() {
    let key = Key { seed: 11, purpose: Purpose::Generation, epoch: 0, step: 0 };
    println!("seed {}", key.seed);
    for round in 0..200u32 {
        let len = 1 + round as usize % 37;
        let word = |i: usize| f64::from(key.block(round, i as u32)[0]) / f64::from(u32::MAX);
        let scores: Vec<f32> = (0..len).map(|i| (0.6 * word(i) - 0.2) as f32).collect();
        let accuracy = word(1000) as f32;
        let actual = Groups::of_scores(&scores, accuracy);

        // Between the two neighbours of rank (1 - accuracy)(len - 1), counted out without interpolation.
        let rank = (1.0 - accuracy) * (len - 1) as f32;
        let mut sorted = scores.clone();
        sorted.sort_by(|a, b| a.partial_cmp(b).unwrap());
        let (low, high) = (sorted[rank.floor() as usize].max(0.0), sorted[rank.ceil() as usize].max(0.0));
        let everyone = [&actual.outliers[..], &actual.boundary, &actual.robust].concat();
        let mut places = everyone.clone();
        places.sort_unstable();
        assert_eq!(places, (0..len as u32).collect::<Vec<_>>(), "each sample in one group");
        for (group, places) in [(0, &actual.outliers), (1, &actual.boundary), (2, &actual.robust)] {
            assert!(places.is_sorted());
            for &place in places {
                let score = scores[place as usize];
                let fits = match group {
                    0 => score < 0.0,
                    1 => score >= 0.0 && score <= high,
                    _ => score >= 0.0 && score > low,
                };
                assert!(fits, "score {score} in group {group}, threshold {low} to {high}");
            }
        }
    }
    // At the start of a run nothing is robust; scores that are no numbers are attacked by nobody.
    let start = Groups::of_scores(&[0.1, -0.1, 0.3, 0.0], 0.0);
    assert_eq!((start.outliers, start.boundary, start.robust), (vec![1], vec![0, 2, 3], vec![]));
    assert_eq!(Groups::of_scores(&[f32::NAN, 0.1], 0.5).outliers, [0]);
}
