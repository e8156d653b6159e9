//! Square: the published schedule, the counts of queries, the images it finds, and the same from both engines.

use secateur::attack::{Found, Search, Square};
use secateur::engine::{DeviceChoice, Engine, Tensor, WeightSet, open};
use secateur::model::ResNet;
use secateur::model::layers::IMAGE_LEN;
use secateur::ops::{Pattern, Query, SearchState, SquareAccept, SquarePropose};
use secateur::philox::{Key, Purpose};

use crate::common::evaluated::{EPSILON, Evaluated};
use crate::common::{self, Random};

const KEY: Key = Key { seed: common::SEED, purpose: Purpose::EvaluationStart, epoch: 0, step: 0 };

/// The published table: the share is halved after iterations 10, 50, 200, ...; a square of 0.8 * 1024 pixels is 29 wide.
#[test]
fn squares_shrink_as_published() {
    let table = [
        (0, 29),
        (10, 29),
        (11, 20),
        (50, 20),
        (51, 14),
        (200, 14),
        (201, 10),
        (500, 10),
        (501, 7),
        (1000, 7),
        (1001, 5),
        (2000, 5),
        (2001, 4),
        (4000, 4),
        (4001, 3),
        (6000, 3),
        (6001, 2),
        (8000, 2),
        (8001, 1),
        (9999, 1),
    ];
    let standard = Square::standard(EPSILON);
    assert_eq!((standard.iterations, standard.share, standard.rescale), (5000, 0.8, false));
    for (iteration, side) in table {
        assert_eq!(standard.side(iteration), side, "iteration {iteration}");
        // Stretched to twice the length, and to the same one.
        let stretched = Square { iterations: 20_000, rescale: true, ..standard };
        assert_eq!(stretched.side(2 * iteration), side, "iteration {iteration} of 10,000 in 20,000");
        let same = Square { iterations: 10_000, rescale: true, ..standard };
        assert_eq!(same.side(iteration), side, "iteration {iteration} of 10,000");
    }
    // AutoAttack's 5000 iterations end with squares of 3; rescaled they would end with 1.
    assert_eq!(standard.side(4999), 3);
    assert_eq!(Square { rescale: true, ..standard }.side(4999), 1);
    assert_eq!(Square { share: 1.0, ..standard }.side(0), 32);
}

/// A search on the images at `positions`: what was found, and the images.
fn search(evaluated: &mut Evaluated, square: Square, key: Key, positions: &[u32]) -> (Found, Vec<f32>) {
    let batch = evaluated.gather(positions);
    let found = { square }.search(&mut evaluated.engine, key, &batch).unwrap();
    (found, evaluated.engine.read(&batch.perturbed).unwrap())
}

#[test]
fn it_finds_images_that_the_network_mispredicts() {
    // The emulator's budget is small, so its ball is large.
    for (device, count, iterations, epsilon) in
        [(DeviceChoice::Cpu, 60, 60, EPSILON), (common::cuda_engine(), 6, 4, 0.2)]
    {
        let mut evaluated = Evaluated::open(device, count);
        let right = evaluated.right.clone();
        let square = Square { iterations, rescale: true, ..Square::standard(epsilon) };
        let (found, perturbed) = search(&mut evaluated, square, KEY, &right);
        let broken = evaluated.check(epsilon, &right, &perturbed, &found.broken);
        println!("{device:?}: {broken} of {} broken, {} queries", right.len(), found.cost.forwards);
        assert!(broken * 8 >= right.len(), "{device:?}: only {broken} of {} broken", right.len());
        assert_eq!(found.cost.backwards, 0);
    }
}

/// Every image takes a query for its stripes and one an iteration until it is predicted wrongly, and no more.
#[test]
fn queries_are_counted_until_an_image_breaks() {
    let mut evaluated = Evaluated::open(DeviceChoice::Cpu, 60);
    let right = evaluated.right.clone();
    let square = |iterations| Square { iterations, ..Square::standard(EPSILON) };
    // The queries of an image: the one that breaks it, and one for each smaller budget that leaves it standing.
    let budget = 12;
    let mut standing = 0;
    for iterations in 0..budget {
        let (found, _) = search(&mut evaluated, square(iterations), KEY, &right);
        standing += found.broken.iter().filter(|broken| !**broken).count() as u64;
    }
    let (found, _) = search(&mut evaluated, square(budget), KEY, &right);
    assert_eq!(found.cost.forwards, right.len() as u64 + standing);
    // In a ball of no size nothing breaks, and the whole budget is spent.
    let (found, perturbed) = search(&mut evaluated, Square { epsilon: 0.0, ..square(40) }, KEY, &right);
    assert_eq!(found.cost.forwards, right.len() as u64 * 41);
    assert!(found.broken.iter().all(|broken| !broken));
    let batch = evaluated.gather(&right);
    assert!(perturbed == evaluated.engine.read(&batch.images).unwrap());
}

/// Alone, in another order, in another batch size: the same images, bit for bit. On the kernels, whose logits do not
/// depend on the batch; those of the reference differ by a rounding where a batch is odd.
#[test]
fn what_is_found_does_not_depend_on_the_batch() {
    let mut evaluated = Evaluated::open(common::cuda_engine(), 7);
    let right = evaluated.right.clone();
    let square = Square { iterations: 4, rescale: true, ..Square::standard(EPSILON) };
    let (whole, images) = search(&mut evaluated, square, KEY, &right);
    let reversed: Vec<u32> = right.iter().rev().copied().collect();
    let mut forwards = 0;
    for part in [&reversed[..1], &reversed[1..]] {
        let (found, perturbed) = search(&mut evaluated, square, KEY, part);
        forwards += found.cost.forwards;
        for (i, position) in part.iter().enumerate() {
            let at = right.iter().position(|other| other == position).unwrap();
            assert_eq!(found.broken[i], whole.broken[at], "image {position}");
            let (alone, among) = (&perturbed[i * IMAGE_LEN..], &images[at * IMAGE_LEN..]);
            assert!(alone[..IMAGE_LEN] == among[..IMAGE_LEN], "image {position} differs");
        }
    }
    assert_eq!(forwards, whole.cost.forwards);
    assert!(whole.broken.contains(&false), "all broken: the test shows little");
}

#[test]
fn a_search_is_repeated_to_the_bit_and_a_restart_is_not() {
    let mut evaluated = Evaluated::open(DeviceChoice::Cpu, 20);
    let right = evaluated.right.clone();
    let square = Square { iterations: 40, ..Square::standard(EPSILON / 4.0) };
    let (first, images) = search(&mut evaluated, square, KEY, &right);
    let (second, same) = search(&mut evaluated, square, KEY, &right);
    assert!(first == second && images == same);
    let (_, others) = search(&mut evaluated, square, Key { step: 1, ..KEY }, &right);
    for (image, other) in images.chunks_exact(IMAGE_LEN).zip(others.chunks_exact(IMAGE_LEN)) {
        assert!(image != other);
    }
}

#[test]
fn the_best_margin_never_rises() {
    let mut evaluated = Evaluated::open(DeviceChoice::Cpu, 40);
    let right = evaluated.right.clone();
    let mut before = vec![f32::INFINITY; right.len()];
    let mut fell = 0;
    for iterations in [0, 5, 10, 20, 40] {
        let square = Square { iterations, ..Square::standard(EPSILON / 4.0) };
        let (found, perturbed) = search(&mut evaluated, square, KEY, &right);
        evaluated.check(EPSILON / 4.0, &right, &perturbed, &found.broken);
        let margins = evaluated.margins(&right, &perturbed);
        for (i, (margin, before)) in margins.iter().zip(&before).enumerate() {
            assert!(margin <= before, "image {}: margin {before} to {margin}", right[i]);
            fell += usize::from(margin < before);
        }
        before = margins;
    }
    assert!(fell > 2 * right.len(), "margins of {} images fell {fell} times only", right.len());
}

#[test]
fn logits_that_are_not_numbers_are_wrong_predictions() {
    let mut evaluated = Evaluated::open(DeviceChoice::Cpu, 8);
    let mut weights = evaluated.engine.weights(WeightSet::Live).unwrap();
    weights.insert("linear.bias", &[10], vec![f32::NAN; 10]);
    evaluated.engine.load_weights(&weights).unwrap();
    evaluated.engine.fold_batch_norm(WeightSet::Live).unwrap();
    let batch = evaluated.gather(&[0, 1, 2]);
    let found = Square::standard(EPSILON).search(&mut evaluated.engine, KEY, &batch).unwrap();
    assert_eq!((found.broken, found.cost.forwards), (vec![true; 3], 3), "the first query breaks each");
}

/// Tensors of a search on one engine, over images that no network looks at: logits are given.
struct Bench {
    engine: Engine,
    rows: Tensor<u32>,
    samples: Tensor<u32>,
    labels: Tensor<u32>,
    images: Tensor<f32>,
    best: Tensor<f32>,
    margins: Tensor<f32>,
    queries: Tensor<u32>,
    candidates: Tensor<f32>,
    logits: Tensor<f32>,
}

const COUNT: usize = 6;
const ROWS: [u32; 4] = [5, 0, 3, 2];

impl Bench {
    fn new(device: DeviceChoice) -> Self {
        let engine = open(device, ResNet::resnet18(16, 10), COUNT).unwrap();
        let mut random = Random::new(7);
        let clean = random.uniforms(COUNT * IMAGE_LEN, 0.0, 1.0);
        Self {
            rows: engine.upload("rows", &ROWS).unwrap(),
            samples: engine.upload("samples", &[9, 8, 7, 6, 5, 4]).unwrap(),
            labels: engine.upload("labels", &[0, 1, 2, 3, 4, 5]).unwrap(),
            images: engine.upload("images", &clean).unwrap(),
            best: engine.upload("best", &vec![f32::NAN; clean.len()]).unwrap(),
            margins: engine.upload("margins", &[f32::NAN; COUNT]).unwrap(),
            queries: engine.upload("queries", &[0; COUNT]).unwrap(),
            candidates: engine.upload("candidates", &vec![f32::NAN; ROWS.len() * IMAGE_LEN]).unwrap(),
            logits: engine.upload("logits", &[f32::NAN; ROWS.len() * 10]).unwrap(),
            engine,
        }
    }

    /// One query with these logits as the answer; all that it may change, as bits.
    fn query(&mut self, query: Query, logits: &[f32]) -> Vec<u32> {
        let Self { engine, rows, samples, labels, images, best, margins, queries, .. } = self;
        let state = SearchState { samples, labels, images, best, margins, queries };
        engine.run(&SquarePropose { query, rows, state, candidates: &self.candidates }).unwrap();
        engine.write(&self.logits, logits).unwrap();
        engine
            .run(&SquareAccept { rows, logits: &self.logits, candidates: &self.candidates, state })
            .unwrap();
        let mut bits = common::words(&engine.read(&self.candidates).unwrap());
        bits.extend(common::words(&engine.read(&self.best).unwrap()));
        bits.extend(engine.read(&self.queries).unwrap());
        let margins = engine.read(&self.margins).unwrap();
        // One NaN is like another.
        bits.extend(margins.iter().map(|m| if m.is_nan() { u32::MAX } else { m.to_bits() }));
        bits
    }
}

#[test]
fn both_engines_try_and_keep_the_same_images() {
    let mut random = Random::new(8);
    let (mut cpu, mut cuda) = (Bench::new(DeviceChoice::Cpu), Bench::new(common::cuda_engine()));
    let mut kept = std::collections::BTreeSet::new();
    for number in 0..12 {
        let pattern = match number {
            0 => Pattern::Stripes,
            _ => Pattern::Square { side: [29, 7, 1, 32][number as usize % 4] },
        };
        let query = Query { pattern, epsilon: EPSILON, key: KEY, number };
        let mut logits = random.normals(ROWS.len() * 10, 1.0);
        for (i, row) in ROWS.iter().enumerate() {
            logits[i * 10 + *row as usize] += 2.5;
        }
        let (expected, actual) = (cpu.query(query, &logits), cuda.query(query, &logits));
        let differs = actual.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!(differs, None, "query {number}, seed {}: the first word that differs", common::SEED);
        kept.insert(common::words(&cpu.engine.read(&cpu.margins).unwrap()));
    }
    assert!(kept.len() > 3, "only {} different margins: the test shows little", kept.len());
}

#[test]
fn bad_calls_are_refused() {
    for device in [DeviceChoice::Cpu, common::cuda_engine()] {
        let (mut bench, foreign) = (Bench::new(device), Bench::new(device));
        let Bench { engine, samples, labels, images, best, margins, queries, candidates, logits, .. } =
            &mut bench;
        let state = SearchState { samples, labels, images, best, margins, queries };
        let rows = engine.upload("rows", &ROWS).unwrap();
        let query = |side| Query { pattern: Pattern::Square { side }, epsilon: EPSILON, key: KEY, number: 1 };
        for side in [0, 33] {
            let error = engine
                .run(&SquarePropose { query: query(side), rows: &rows, state, candidates })
                .unwrap_err();
            let expected = format!("a square of side {side}: expected 1 to 32");
            assert_eq!(error.to_string(), expected, "{device:?}");
        }
        let error = engine
            .run(&SquarePropose { query: query(3), rows: &foreign.rows, state, candidates })
            .unwrap_err();
        assert_eq!(error.to_string(), "rows: memory of another engine", "{device:?}");
        let short = engine.upload("short", &[5]).unwrap();
        let error = engine.run(&SquareAccept { rows: &short, logits, candidates, state }).unwrap_err();
        assert_eq!(error.to_string(), "logits: 40 elements, expected 10", "{device:?}");
        let state = SearchState { margins: logits, ..state };
        let error = engine.run(&SquareAccept { rows: &rows, logits, candidates, state }).unwrap_err();
        assert_eq!(error.to_string(), "logits: 40 elements, expected 6", "{device:?}");
    }
}

#[test]
fn a_row_that_is_not_there_becomes_nan_and_is_not_kept() {
    for device in [DeviceChoice::Cpu, common::cuda_engine()] {
        let mut bench = Bench::new(device);
        let Bench { engine, samples, labels, images, best, margins, queries, candidates, logits, .. } =
            &mut bench;
        let state = SearchState { samples, labels, images, best, margins, queries };
        let rows = engine.upload("rows", &[5, 6, 0, 1]).unwrap();
        let query = Query { pattern: Pattern::Stripes, epsilon: EPSILON, key: KEY, number: 0 };
        engine.run(&SquarePropose { query, rows: &rows, state, candidates }).unwrap();
        let there: Vec<bool> = engine
            .read(candidates)
            .unwrap()
            .chunks_exact(IMAGE_LEN)
            .map(|image| image.iter().all(|x| (0.0..=1.0).contains(x)))
            .collect();
        assert_eq!(there, [true, false, true, true], "{device:?}");
        engine.write(logits, &[0.0; ROWS.len() * 10]).unwrap();
        engine.run(&SquareAccept { rows: &rows, logits, candidates, state }).unwrap();
        assert_eq!(engine.read(queries).unwrap(), [1, 1, 0, 0, 0, 1], "{device:?}");
    }
}
