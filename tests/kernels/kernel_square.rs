//! Random search over squares (`kernels/ops/square.cu`): candidates bit for bit as specified, acceptance by the margin.

use secateur::cuda::driver::Address;
use secateur::model::layers::IMAGE_LEN;
use secateur::ops::square::*;
use secateur::ops::{Pattern, Query};
use secateur::philox::{Key, Purpose};

use crate::common::*;

const SAMPLES: [u32; 5] = [7, 49_999, 0, 123, 4_000];
/// Those that take part, in an order of their own; the last is not there.
const ROWS: [u32; 4] = [3, 0, 4, 5];
const EPSILON: f32 = 8.0 / 255.0;
const NUMBER: u32 = 41;

fn key() -> Key {
    Key { seed: SEED << 20 | 9, purpose: Purpose::SquareQuery, epoch: 2, step: 3 }
}

/// Clean images that reach both ends of [0, 1], and others in the ball around them.
fn images() -> (Vec<f32>, Vec<f32>) {
    let mut random = Random::new(1);
    let clean: Vec<f32> =
        random.uniforms(SAMPLES.len() * IMAGE_LEN, -0.2, 1.2).iter().map(|x| x.clamp(0.0, 1.0)).collect();
    let corner = |x: &f32| match random.word() % 3 {
        0 => x - EPSILON,
        1 => x + EPSILON,
        _ => *x,
    };
    let best = clean.iter().map(corner).map(|x| x.clamp(0.0, 1.0)).collect();
    (clean, best)
}

/// What is added to the image, NHWC, drawn for `sample`: the stripes, or the square.
fn change(pattern: Pattern, sample: u32) -> Vec<f32> {
    let words = key().block(sample, NUMBER);
    let sign = |set: bool| if set { 1.0 } else { -1.0 };
    let mut change = vec![0.0; IMAGE_LEN];
    match pattern {
        Pattern::Stripes => {
            for row in 0..32 {
                for column in 0..32 {
                    for channel in 0..3 {
                        let set = words[channel] & 1 << column != 0;
                        change[(row * 32 + column) * 3 + channel] = EPSILON * sign(set);
                    }
                }
            }
        }
        Pattern::Square { side } => {
            // In f64 the product is exact, so this is the floor itself.
            let first =
                |word: u32| (f64::from(word >> 8) / f64::from(1 << 24) * (32 - side) as f64).floor() as usize;
            for row in 0..side {
                for column in 0..side {
                    for channel in 0..3 {
                        let pixel = (first(words[0]) + row) * 32 + first(words[1]) + column;
                        let set = words[2] & 1 << channel != 0;
                        change[pixel * 3 + channel] = 2.0 * EPSILON * sign(set);
                    }
                }
            }
        }
    }
    change
}

#[test]
fn candidates_have_the_bits_of_the_specification() {
    let (clean, best) = images();
    let patterns = [1, 2, 5, 29, 32].map(|side| Pattern::Square { side });
    for pattern in patterns.into_iter().chain([Pattern::Stripes]) {
        on_every_driver(&format!("{pattern:?}"), |driver| {
            let (rows, samples) = (input(driver, "rows", &ROWS), input(driver, "samples", &SAMPLES));
            let (clean_at, best_at) = (input(driver, "images", &clean), input(driver, "best", &best));
            let candidates = Output::new::<f32>(driver, "candidates", ROWS.len() * IMAGE_LEN);
            let query = Query { pattern, epsilon: EPSILON, key: key(), number: NUMBER };
            let proposal = Proposal {
                rows: rows.address(),
                samples: samples.address(),
                images: clean_at.address(),
                best: if pattern == Pattern::Stripes { Address::NULL } else { best_at.address() },
                candidates: candidates.address(),
            };
            square_propose(&**driver, &query, proposal, [SAMPLES.len(), ROWS.len()]).unwrap();

            let actual = candidates.read::<f32>();
            for (i, &row) in ROWS[..3].iter().enumerate() {
                let of = row as usize * IMAGE_LEN..(row as usize + 1) * IMAGE_LEN;
                let change = change(pattern, SAMPLES[row as usize]);
                let start = if pattern == Pattern::Stripes { &clean } else { &best };
                for (e, ((start, x), change)) in
                    start[of.clone()].iter().zip(&clean[of]).zip(change).enumerate()
                {
                    let expected = (start + change).max(x - EPSILON).min(x + EPSILON).clamp(0.0, 1.0);
                    let actual = actual[i * IMAGE_LEN + e];
                    assert_eq!(
                        actual.to_bits(),
                        expected.to_bits(),
                        "{pattern:?}: row {row}, element {e}: {actual}"
                    );
                }
            }
            assert!(actual[3 * IMAGE_LEN..].iter().all(|x| x.is_nan()), "a row that is not there");
            words(&actual)
        });
    }
}

/// One image of the acceptance test: what it has, what it meets, what must come out.
struct Case {
    what: &'static str,
    label: u32,
    before: f32,
    logits: [f32; 4],
    margin: f32,
    accepted: bool,
    counted: bool,
}

/// Every kind of image; `label` counts in the first four classes, the others are far below.
fn cases() -> Vec<Case> {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let case = |what, label, before, logits, margin, accepted, counted| Case {
        what,
        label,
        before,
        logits,
        margin,
        accepted,
        counted,
    };
    vec![
        case("lower", 1, 2.0, [0.5, 2.0, 1.0, 0.0], 1.0, true, true),
        case("higher", 1, 2.0, [0.5, 4.0, 1.0, 0.0], 2.0, false, true),
        case("equal", 1, 2.0, [0.5, 3.0, 1.0, 0.0], 2.0, false, true),
        case("wrong", 2, 2.0, [0.5, 3.0, 1.0, 0.0], -2.0, true, true),
        case("wrong before", 2, -0.5, [0.5, 3.0, 1.0, 0.0], -0.5, false, false),
        case("the first query", 0, nan, [9.0, 3.0, 1.0, 0.0], 6.0, true, true),
        case("a tie won by the index", 0, 0.5, [3.0, 3.0, 1.0, 0.0], 0.0, true, true),
        case("a tie lost by the index", 1, 0.5, [3.0, 3.0, 1.0, 0.0], -f32::MIN_POSITIVE, true, true),
        case("a tie after a tie", 0, 0.0, [3.0, 3.0, 1.0, 0.0], 0.0, false, true),
        case("its own logit NaN", 0, 0.5, [nan, 3.0, 1.0, 0.0], -inf, true, true),
        case("another logit NaN", 3, 0.5, [0.0, nan, 1.0, 0.0], -inf, true, true),
        case("its own logit infinite", 0, 0.5, [inf, 3.0, 1.0, 0.0], -inf, true, true),
        case("another logit infinite", 3, 0.5, [0.0, -inf, 1.0, 9.0], -inf, true, true),
        case("broken by a NaN before", 3, -inf, [0.0, 1.0, 1.0, 9.0], -inf, false, false),
        case("no class", 4_000, 0.5, [0.0, 1.0, 1.0, 0.0], nan, true, true),
    ]
}

#[test]
fn the_lower_margin_is_kept() {
    let cases = cases();
    let count = cases.len();
    // Last image first; and one row that is not there.
    let rows: Vec<u32> = (0..=count as u32).rev().collect();
    for classes in [4, 10, 100] {
        on_every_driver(&format!("acceptance, {classes} classes"), |driver| {
            let mut random = Random::new(2);
            let old = random.uniforms(count * IMAGE_LEN, 0.0, 1.0);
            let new = random.uniforms(rows.len() * IMAGE_LEN, 0.0, 1.0);
            let mut logits = vec![-50.0f32; rows.len() * classes];
            for (i, &row) in rows.iter().enumerate().skip(1) {
                logits[i * classes..i * classes + 4].copy_from_slice(&cases[row as usize].logits);
            }
            let column = |of: fn(&Case) -> f32| cases.iter().map(of).collect::<Vec<f32>>();
            let labels: Vec<u32> = cases.iter().map(|case| case.label).collect();
            let (rows_at, labels_at) = (input(driver, "rows", &rows), input(driver, "labels", &labels));
            let (logits_at, new_at) = (input(driver, "logits", &logits), input(driver, "candidates", &new));
            let margins = Output::holding(driver, "margins", &column(|case| case.before));
            let queries = Output::holding(driver, "queries", &vec![5u32; count]);
            let best = Output::holding(driver, "best", &old);
            let params = SquareAcceptParams {
                rows: rows_at.address(),
                labels: labels_at.address(),
                logits: logits_at.address(),
                candidates: new_at.address(),
                margins: margins.address(),
                queries: queries.address(),
                best: best.address(),
                count: count as u32,
                classes: classes as u32,
            };
            square_accept(&**driver, rows.len(), &params).unwrap();

            let (margins, queries, best) = (margins.read::<f32>(), queries.read::<u32>(), best.read::<f32>());
            for (row, case) in cases.iter().enumerate() {
                let what = format!("{}, {classes} classes", case.what);
                let actual = margins[row];
                assert!(
                    actual == case.margin || actual.is_nan() && case.margin.is_nan(),
                    "{what}: margin {actual}"
                );
                assert_eq!(queries[row], 5 + u32::from(case.counted), "{what}: queries");
                let i = count - row;
                let expected = if case.accepted { &new[i * IMAGE_LEN..] } else { &old[row * IMAGE_LEN..] };
                assert!(best[row * IMAGE_LEN..][..IMAGE_LEN] == expected[..IMAGE_LEN], "{what}: image");
            }
            // A NaN has no bits to compare between runs of different devices.
            words(&best)
        });
    }
}
