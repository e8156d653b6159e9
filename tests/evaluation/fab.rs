//! FAB: its ways to hyperplanes against linear programmes, the distances it reaches, and the images it finds.
//!
//! The fixture is written by `scripts/make-projection-fixtures.py`.

use safetensors::SafeTensors;
use secateur::attack::{Cost, Fab, Found, Search};
use secateur::engine::{DeviceChoice, Engine, Tensor, open};
use secateur::model::ResNet;
use secateur::model::layers::IMAGE_LEN;
use secateur::ops::{ClassDifference, FabKeep, FabState, FabStep, TargetClass};
use secateur::philox::{Key, Purpose};

use crate::common;
use crate::common::boundary::Shares;
use crate::common::boundary::{self, STEPS, cases};
use crate::common::evaluated::{EPSILON, Evaluated};

const KEY: Key = Key { seed: common::SEED, purpose: Purpose::EvaluationStart, epoch: 0, step: 0 };
const CLASSES: usize = 10;

/// Where `step` takes the images, whose gradients and differences of logits are given.
fn stepped(
    engine: &mut Engine,
    step: &Shares,
    [gradient, clean, current]: [&[f32]; 3],
    differences: &[f32],
) -> Vec<f32> {
    let batch = differences.len();
    let logits: Vec<f32> =
        differences.iter().flat_map(|d| [&[0.0, *d], &[9.0; CLASSES - 2][..]].concat()).collect();
    let up = |name, values: &[f32]| engine.upload(name, values).unwrap();
    let (logits, gradient, clean) = (up("logits", &logits), up("gradient", gradient), up("images", clean));
    let (current, closest) = (up("current", current), up("closest", current));
    let distances = up("distances", &vec![f32::INFINITY; batch]);
    let labels: Tensor<u32> = engine.upload("labels", &vec![0; batch]).unwrap();
    let targets: Tensor<u32> = engine.upload("targets", &vec![1; batch]).unwrap();
    let state = FabState {
        labels: &labels,
        targets: &targets,
        images: &clean,
        current: &current,
        closest: &closest,
        distances: &distances,
    };
    engine
        .run(&FabStep {
            largest_share: step.largest_share,
            overshoot: step.overshoot,
            logits: &logits,
            gradient: &gradient,
            state,
        })
        .unwrap();
    engine.read(&current).unwrap()
}

fn engines(batch: usize) -> [(DeviceChoice, Engine); 2] {
    [DeviceChoice::Cpu, common::cuda_engine()]
        .map(|device| (device, open(device, ResNet::resnet18(16, CLASSES), batch).unwrap()))
}

#[test]
fn ways_are_as_long_as_linear_programmes_say() {
    // Not the folder of the build: this also runs on machines that have the repository elsewhere.
    let path = "tests/fixtures/projections.safetensors";
    let bytes = std::fs::read(path).unwrap();
    let fixture = SafeTensors::deserialize(&bytes).unwrap();
    let read = |name: String| -> Vec<f32> {
        fixture.tensor(&name).unwrap().data().chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
    };
    for size in [24, IMAGE_LEN] {
        let [points, weights, excess, lengths, gaps] =
            ["points", "weights", "excess", "lengths", "gaps"].map(|name| read(format!("{size}.{name}")));
        let count = excess.len();
        // The elements of a small case are spread over an image; the others have no gradient.
        let place = |i: usize| i * 125 % IMAGE_LEN;
        let spread = |values: &[f32], elsewhere: f32| -> Vec<f32> {
            let mut images = vec![elsewhere; count * IMAGE_LEN];
            for (case, values) in values.chunks_exact(size).enumerate() {
                values.iter().enumerate().for_each(|(i, v)| images[case * IMAGE_LEN + place(i)] = *v);
            }
            images
        };
        let (points, weights) = (spread(&points, 0.25), spread(&weights, 0.0));
        let step = Shares { largest_share: 0.0, overshoot: 1.0 };
        for (device, mut engine) in engines(count) {
            let actual = stepped(&mut engine, &step, [&weights, &points, &points], &excess);
            let mut out_of_reach = 0;
            for case in 0..count {
                let what = format!("{device:?}, {size} elements, case {case}");
                let of = case * IMAGE_LEN..(case + 1) * IMAGE_LEN;
                let (mut length, mut covered, mut scale) = (0.0f64, 0.0, 1e-6);
                for ((actual, t), w) in actual[of.clone()].iter().zip(&points[of.clone()]).zip(&weights[of]) {
                    assert!((0.0..=1.0).contains(actual), "{what}: {actual}");
                    assert!(*w != 0.0 || actual == t, "{what}: an element without gradient moved");
                    let d = f64::from(*actual) - f64::from(*t);
                    length = length.max(d.abs());
                    covered += f64::from(*w) * d;
                    scale += f64::from(w.abs());
                }
                let gap = (covered + f64::from(excess[case])).abs();
                let (length_wanted, gap_wanted) = (f64::from(lengths[case]), f64::from(gaps[case]));
                assert!((gap - gap_wanted).abs() <= 1e-6 * scale, "{what}: gap {gap}, expected {gap_wanted}");
                match length_wanted.is_nan() {
                    true => out_of_reach += 1,
                    false => {
                        assert!((length - length_wanted).abs() <= 2e-6, "{what}: {length}, {length_wanted}")
                    }
                }
            }
            assert!(
                size != 24 || (1..count).contains(&out_of_reach),
                "{device:?}: {out_of_reach} out of reach"
            );
        }
    }
}

#[test]
fn steps_of_both_engines_end_where_bisection_ends() {
    let cases = cases();
    let all =
        |of: fn(&boundary::Case) -> &Vec<f32>| cases.iter().flat_map(|c| of(c).clone()).collect::<Vec<f32>>();
    let (gradient, clean, current) = (all(|c| &c.gradient), all(|c| &c.clean), all(|c| &c.current));
    let differences: Vec<f32> = cases.iter().map(|case| case.difference).collect();
    for (device, mut engine) in engines(cases.len()) {
        for step in STEPS {
            println!("{device:?}, {step:?}, seed {}", common::SEED);
            let actual = stepped(&mut engine, &step, [&gradient, &clean, &current], &differences);
            for (case, actual) in cases.iter().zip(actual.chunks_exact(IMAGE_LEN)) {
                case.check(&step, actual);
            }
        }
    }
}

#[test]
fn both_engines_choose_the_same_targets_and_keep_the_same_images() {
    let mut random = common::Random::new(51);
    let batch = 6;
    let logits = random.normals(batch * CLASSES, 1.0);
    let clean = random.uniforms(batch * IMAGE_LEN, 0.0, 1.0);
    let moved: Vec<f32> = clean.iter().map(|x| (x + random.uniform(-0.1, 0.1)).clamp(0.0, 1.0)).collect();
    let results = engines(batch).map(|(device, mut engine)| {
        let engine = &mut engine;
        let logits = engine.upload("logits", &logits).unwrap();
        let labels: Tensor<u32> = engine.upload("labels", &[0, 1, 2, 3, 4, 5]).unwrap();
        let targets: Tensor<u32> = engine.upload("targets", &[u32::MAX; 6]).unwrap();
        let mut seen = Vec::new();
        for rank in 1..CLASSES {
            engine.run(&TargetClass { logits: &logits, labels: &labels, rank, targets: &targets }).unwrap();
            let gradient = engine.upload("gradient", &[f32::NAN; 60]).unwrap();
            engine
                .run(&ClassDifference { labels: &labels, targets: &targets, logit_gradient: &gradient })
                .unwrap();
            seen.extend(engine.read(&targets).unwrap());
            seen.extend(common::words(&engine.read(&gradient).unwrap()));
        }
        for rank in [0, CLASSES] {
            let error = engine
                .run(&TargetClass { logits: &logits, labels: &labels, rank, targets: &targets })
                .unwrap_err()
                .to_string();
            assert_eq!(
                error,
                format!("wrong class of rank {rank}, expected 1 to 9: the network has 10 classes"),
                "{device:?}"
            );
        }
        let up = |name, values: &[f32]| engine.upload(name, values).unwrap();
        let (images, current, short) = (up("images", &clean), up("current", &moved), up("short", &[0.0; 3]));
        let (closest, distances) = (up("closest", &clean), up("distances", &[0.05, 1.0, 9.0, 9.0, 9.0, 9.0]));
        let state = FabState {
            labels: &labels,
            targets: &targets,
            images: &images,
            current: &current,
            closest: &closest,
            distances: &distances,
        };
        engine.run(&FabKeep { backward: 0.9, logits: &logits, state }).unwrap();
        for tensor in [&current, &closest, &distances] {
            seen.extend(common::words(&engine.read(tensor).unwrap()));
        }
        let error = engine.run(&FabKeep { backward: 0.9, logits: &short, state }).unwrap_err().to_string();
        assert_eq!(error, "short: 3 elements, expected 60", "{device:?}");
        seen
    });
    assert!(results[0] == results[1], "seed {}", common::SEED);
}

fn search(evaluated: &mut Evaluated, fab: Fab, positions: &[u32]) -> (Found, Vec<f32>) {
    let batch = evaluated.gather(positions);
    let found = { fab }.search(&mut evaluated.engine, KEY, &batch).unwrap();
    (found, evaluated.engine.read(&batch.perturbed).unwrap())
}

#[test]
fn it_finds_images_that_the_network_mispredicts() {
    let standard = Fab::standard(EPSILON);
    assert_eq!((standard.iterations, standard.targets, standard.backward), (100, 9, 0.9));
    assert_eq!([standard.largest_share, standard.overshoot], [0.1, 1.05]);
    for (device, count, iterations, targets, epsilon) in
        [(DeviceChoice::Cpu, 40, 12, 3, EPSILON), (common::cuda_engine(), 6, 5, 1, 0.2)]
    {
        let mut evaluated = Evaluated::open(device, count);
        let right = evaluated.right.clone();
        let fab = Fab { iterations, targets, ..Fab::standard(epsilon) };
        let (found, perturbed) = search(&mut evaluated, fab, &right);
        let broken = evaluated.check(epsilon, &right, &perturbed, &found.broken);
        println!("{device:?}: {broken} of {} broken, {:?}", right.len(), found.cost);
        assert!(broken * 3 >= right.len(), "{device:?}: only {broken} of {} broken", right.len());
        assert!(device != DeviceChoice::Cpu || broken < right.len(), "all broken: the test shows less");
    }
}

#[test]
fn distances_are_those_of_the_images_and_fall_with_more_iterations() {
    let mut evaluated = Evaluated::open(DeviceChoice::Cpu, 24);
    let right = evaluated.right.clone();
    let batch = evaluated.gather(&right);
    let clean = evaluated.engine.read(&batch.images).unwrap();
    let mut before = vec![f32::INFINITY; right.len()];
    let mut fell = 0;
    for iterations in [1, 4, 12, 24] {
        let fab = Fab { iterations, targets: 2, ..Fab::standard(EPSILON) };
        let distances = fab.closest(&mut evaluated.engine, &batch).unwrap();
        let perturbed = evaluated.engine.read(&batch.perturbed).unwrap();
        let margins = evaluated.margins(&right, &perturbed);
        for i in 0..right.len() {
            let of = i * IMAGE_LEN..(i + 1) * IMAGE_LEN;
            let pairs = clean[of.clone()].iter().zip(&perturbed[of]);
            let distance = pairs.map(|(x, moved)| (moved - x).abs()).fold(0.0, f32::max);
            assert!(distances[i] <= before[i], "image {}: {} to {}", right[i], before[i], distances[i]);
            assert_eq!(margins[i] < 0.0, distances[i].is_finite(), "image {}", right[i]);
            assert_eq!(
                distance,
                if distances[i].is_finite() { distances[i] } else { 0.0 },
                "image {}",
                right[i]
            );
            fell += usize::from(distances[i] < before[i]);
        }
        before = distances;
    }
    assert!(before.iter().all(|distance| distance.is_finite()), "{before:?}");
    assert!(fell > 2 * right.len(), "distances of {} images fell {fell} times only", right.len());
}

#[test]
fn passes_are_counted_for_the_images_that_are_left() {
    let mut evaluated = Evaluated::open(DeviceChoice::Cpu, 12);
    let right = evaluated.right.clone();
    let fab = |epsilon, targets| Fab { iterations: 8, targets, ..Fab::standard(epsilon) };
    // Nothing breaks in a ball of no size: every image meets every target. In one without end those that break on the first meet
    // no other.
    let (first, _) = search(&mut evaluated, fab(f32::INFINITY, 1), &right);
    let easy: Vec<u32> =
        right.iter().zip(&first.broken).filter(|(_, broken)| **broken).map(|(image, _)| *image).collect();
    assert!(
        2 * easy.len() > right.len(),
        "{} of {} images break on the first target",
        easy.len(),
        right.len()
    );
    for (epsilon, actual, broken, searched) in [(0.0, 3, false, &right), (f32::INFINITY, 1, true, &easy)] {
        let (found, perturbed) = search(&mut evaluated, fab(epsilon, 3), searched);
        assert_eq!(found.broken, vec![broken; searched.len()], "epsilon {epsilon}");
        let images = searched.len() as u64;
        let cost = Cost { forwards: images + 2 * 8 * actual * images, backwards: 8 * actual * images };
        assert_eq!(found.cost, cost, "epsilon {epsilon}");
        if !broken {
            let batch = evaluated.gather(searched);
            assert!(perturbed == evaluated.engine.read(&batch.images).unwrap(), "epsilon {epsilon}");
        }
    }
}

/// Alone, in another order, in another batch size: the same images, bit for bit. On the kernels, whose logits and gradients
/// do not depend on the batch; those of the reference differ by a rounding where a batch is odd.
#[test]
fn what_is_found_does_not_depend_on_the_batch() {
    let mut evaluated = Evaluated::open(common::cuda_engine(), 7);
    let right = evaluated.right.clone();
    let fab = Fab { iterations: 3, targets: 2, ..Fab::standard(EPSILON) };
    let mut closest = |positions: &[u32]| {
        let batch = evaluated.gather(positions);
        let distances = fab.closest(&mut evaluated.engine, &batch).unwrap();
        (distances, evaluated.engine.read(&batch.perturbed).unwrap())
    };
    let (whole, images) = closest(&right);
    let reversed: Vec<u32> = right.iter().rev().copied().collect();
    for part in [&reversed[..1], &reversed[1..]] {
        let (distances, perturbed) = closest(part);
        for (i, position) in part.iter().enumerate() {
            let at = right.iter().position(|other| other == position).unwrap();
            assert_eq!(distances[i], whole[at], "image {position}");
            let (alone, among) = (&perturbed[i * IMAGE_LEN..], &images[at * IMAGE_LEN..]);
            assert!(alone[..IMAGE_LEN] == among[..IMAGE_LEN], "image {position} differs");
        }
    }
    assert!(whole.iter().any(|distance| distance.is_finite()), "{whole:?}");
}
