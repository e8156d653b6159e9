//! Steps to decision boundaries (`kernels/ops/fab.cu`) against bisection in f64, and their bookkeeping exactly.

use secateur::model::layers::IMAGE_LEN;
use secateur::ops::fab::*;
use secateur::ops::target_class::*;

use crate::common::boundary::{Case, STEPS, cases};
use crate::common::*;

#[test]
fn targets_are_ranked_with_the_highest_index_first() {
    for classes in [2, 10, 33, 100] {
        on_every_driver(&format!("ranked targets, {classes} classes"), |driver| {
            let mut random = Random::new(classes as u32);
            let batch = 9;
            // Few different values, so that there are ties, zeros of both signs among them.
            let logits: Vec<f32> = (0..batch * classes)
                .map(|_| [0.0, -0.0, 1.0, -1.5, 7.0][random.word() as usize % 5])
                .collect();
            let labels: Vec<u32> = (0..batch).map(|_| random.word() % classes as u32).collect();
            let (logits_at, labels_at) = (input(driver, "logits", &logits), input(driver, "labels", &labels));
            let mut seen = Vec::new();
            for rank in 1..classes.min(12) {
                let targets = Output::new::<u32>(driver, "targets", batch);
                let params = TargetClassParams {
                    logits: logits_at.address(),
                    labels: labels_at.address(),
                    targets: targets.address(),
                    batch: batch as u32,
                    classes: classes as u32,
                    rank: rank as u32,
                    padding: 0,
                };
                target_class(&**driver, &params).unwrap();
                let actual = targets.read::<u32>();
                for (i, row) in logits.chunks_exact(classes).enumerate() {
                    let mut order: Vec<usize> = (0..classes).filter(|&c| c != labels[i] as usize).collect();
                    order.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap().then(b.cmp(&a)));
                    assert_eq!(
                        actual[i] as usize,
                        order[rank - 1],
                        "rank {rank} of {row:?}, label {}",
                        labels[i]
                    );
                }
                seen.extend(actual);
            }
            seen
        });
    }
}

#[test]
fn the_difference_of_two_classes_is_one_less_the_other() {
    on_every_driver("class difference", |driver| {
        let (labels, targets) = ([3u32, 0, 9, 5], [4u32, 9, 0, 5]);
        let gradient = Output::new::<f32>(driver, "gradient", 40);
        let (labels_at, targets_at) = (input(driver, "labels", &labels), input(driver, "targets", &targets));
        let params = ClassDifferenceParams {
            labels: labels_at.address(),
            targets: targets_at.address(),
            gradient: gradient.address(),
            elements: 40,
            classes: 10,
        };
        class_difference(&**driver, &params).unwrap();
        let actual = gradient.read::<f32>();
        let mut expected = [0.0; 40];
        for i in 0..4 {
            expected[i * 10 + targets[i] as usize] += 1.0;
            expected[i * 10 + labels[i] as usize] -= 1.0;
        }
        assert_eq!(actual, expected);
        words(&actual)
    });
}

fn concatenated(cases: &[Case], of: fn(&Case) -> &Vec<f32>) -> Vec<f32> {
    cases.iter().flat_map(|case| of(case).clone()).collect()
}

#[test]
fn a_step_ends_where_bisection_ends() {
    let cases = cases();
    let classes = 10;
    // The last one has no class for a target and stays where it is.
    let targets: Vec<u32> = (0..cases.len() as u32).map(|i| 1 + i % 9).chain([77]).collect();
    let mut logits = vec![0.5f32; targets.len() * classes];
    for (i, case) in cases.iter().enumerate() {
        (logits[i * classes], logits[i * classes + targets[i] as usize]) = (0.0, case.difference);
    }
    let more = Random::new(5).uniforms(IMAGE_LEN, 0.0, 1.0);
    let with_more = |of: fn(&Case) -> &Vec<f32>| [concatenated(&cases, of), more.clone()].concat();
    let (gradient, clean) = (with_more(|case| &case.gradient), with_more(|case| &case.clean));
    let current = with_more(|case| &case.current);
    for step in STEPS {
        on_every_driver(&format!("{step:?}"), |driver| {
            let (logits_at, gradient_at) =
                (input(driver, "logits", &logits), input(driver, "gradient", &gradient));
            let (labels_at, targets_at) =
                (input(driver, "labels", &vec![0u32; targets.len()]), input(driver, "targets", &targets));
            let clean_at = input(driver, "images", &clean);
            let moved = Output::holding(driver, "current", &current);
            let params = FabStepParams {
                logits: logits_at.address(),
                gradient: gradient_at.address(),
                labels: labels_at.address(),
                targets: targets_at.address(),
                images: clean_at.address(),
                current: moved.address(),
                classes: classes as u32,
                largest_share: step.largest_share,
                overshoot: step.overshoot,
                padding: 0,
            };
            fab_step(&**driver, targets.len(), &params).unwrap();
            let actual = moved.read::<f32>();
            for (case, actual) in cases.iter().zip(actual.chunks_exact(IMAGE_LEN)) {
                case.check(&step, actual);
            }
            assert!(actual[cases.len() * IMAGE_LEN..] == more[..], "no class: it moved");
            words(&actual)
        });
    }
}

#[test]
fn the_closest_wrong_image_is_kept() {
    // Predicted right; wrong and closer; wrong and farther; wrong for the first time; a tie lost by the index; NaN; infinite.
    let rows: [[f32; 3]; 7] = [
        [3.0, 2.0, 1.0],
        [1.0, 2.0, 3.0],
        [1.0, 2.0, 0.0],
        [0.0, 0.5, 0.0],
        [1.0, 1.0, 0.0],
        [1.0, f32::NAN, 0.0],
        [1.0, f32::NEG_INFINITY, 0.0],
    ];
    let labels = [0u32, 0, 0, 0, 1, 0, 0];
    let before = [0.5f32, 0.5, 0.001, f32::INFINITY, f32::INFINITY, f32::INFINITY, f32::INFINITY];
    let wrong = [false, true, true, true, true, true, true];
    on_every_driver("keep", |driver| {
        let mut random = Random::new(41);
        let count = rows.len() * IMAGE_LEN;
        let (clean, old) = (random.uniforms(count, 0.0, 1.0), random.uniforms(count, 0.0, 1.0));
        let current: Vec<f32> =
            clean.iter().map(|x| (x + random.uniform(-0.05, 0.05)).clamp(0.0, 1.0)).collect();
        let (logits_at, labels_at) =
            (input(driver, "logits", rows.as_flattened()), input(driver, "labels", &labels));
        let clean_at = input(driver, "images", &clean);
        let moved = Output::holding(driver, "current", &current);
        let closest = Output::holding(driver, "closest", &old);
        let distances = Output::holding(driver, "distances", &before);
        let params = FabKeepParams {
            logits: logits_at.address(),
            labels: labels_at.address(),
            images: clean_at.address(),
            current: moved.address(),
            closest: closest.address(),
            distances: distances.address(),
            classes: 3,
            backward: 0.9,
        };
        fab_keep(&**driver, rows.len(), &params).unwrap();
        let (moved, closest) = (moved.read::<f32>(), closest.read::<f32>());
        let distances = distances.read::<f32>();
        for i in 0..rows.len() {
            let of = i * IMAGE_LEN..(i + 1) * IMAGE_LEN;
            let (x, from) = (&clean[of.clone()], &current[of.clone()]);
            let distance = x.iter().zip(from).map(|(x, y)| (y - x).abs()).fold(0.0, f32::max);
            let kept = wrong[i] && distance < before[i];
            assert_eq!(distances[i], if kept { distance } else { before[i] }, "image {i}");
            let expected = if kept { from } else { &old[of.clone()] };
            assert!(closest[of.clone()] == *expected, "image {i}: the closest");
            for (actual, (x, from)) in moved[of].iter().zip(x.iter().zip(from)) {
                let expected = if wrong[i] { x + (from - x) * 0.9 } else { *from };
                assert_eq!(actual.to_bits(), expected.to_bits(), "image {i}");
            }
        }
        [words(&moved), words(&closest), words(&distances)].concat()
    });
}
