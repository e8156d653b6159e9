//! Selection against sorting: any length, ties, signs, infinities and NaN.

use std::rc::Rc;

use secateur::cuda::driver::Driver;
use secateur::ops::select::*;

use crate::common::*;

/// Lengths around the block, the warp, and the training set.
const LENGTHS: [usize; 9] = [1, 2, 31, 32, 511, 512, 513, 5_000, 50_000];

/// Positions of the k largest, stable, ascending.
fn top(values: &[f32], k: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    // Stable: equal values stay in the order of their positions. Zeros of both signs are equal.
    order.sort_by(|a, b| values[*b as usize].partial_cmp(&values[*a as usize]).unwrap());
    order.truncate(k);
    order.sort_unstable();
    order
}

/// Losses; few distinct ones; and all that floats can be.
fn kinds(len: usize) -> Vec<(&'static str, Vec<f32>)> {
    let mut random = Random::new(1);
    let losses = random.uniforms(len, 0.0, 5.0);
    let ties = (0..len).map(|_| (random.word() % 5) as f32 - 2.0).collect();
    let signs = (0..len).map(|_| if random.word().is_multiple_of(2) { 0.0 } else { -0.0 }).collect();
    let mut wild: Vec<f32> = (0..len)
        .map(|_| f32::from_bits(random.word()))
        .map(|v| if v.is_nan() { -f32::MIN_POSITIVE / 3.0 } else { v })
        .collect();
    wild[0] = f32::INFINITY;
    wild[len - 1] = f32::NEG_INFINITY;
    vec![("losses", losses), ("ties", ties), ("zeros of both signs", signs), ("wild", wild)]
}

fn select(
    driver: &Rc<dyn Driver>,
    values: &[f32],
    capacity: usize,
    launch: impl Fn(&dyn Driver, Selection, usize),
) -> (Outcome, Vec<u32>) {
    let values_at = input(driver, "values", values);
    let positions = Output::new::<u32>(driver, "positions", capacity);
    let outcome = Output::new::<Outcome>(driver, "outcome", 1);
    let selection =
        Selection { values: values_at.address(), positions: positions.address(), outcome: outcome.address() };
    launch(&**driver, selection, values.len());
    (outcome.read::<Outcome>()[0], positions.read())
}

#[test]
fn top_k_is_a_stable_sort() {
    for len in LENGTHS {
        for (kind, values) in kinds(len) {
            for k in [0, 1, len / 3, len - 1, len] {
                on_every_driver(&format!("top {k} of {len} {kind}"), |driver| {
                    let launch = |driver: &dyn Driver, s, count| select_top_k(driver, s, count, k).unwrap();
                    let (outcome, positions) = select(driver, &values, k, launch);
                    assert_eq!(outcome, Outcome { selected: k as u32, nan_position: u32::MAX });
                    assert_eq!(positions, top(&values, k), "seed {SEED}");
                    [vec![outcome.selected], positions].concat()
                });
            }
        }
    }
}

#[test]
fn at_least_keeps_every_position() {
    for len in LENGTHS {
        for (kind, values) in kinds(len) {
            let thresholds = [0.0, -0.0, 2.5, values[len / 2], f32::INFINITY, f32::NEG_INFINITY];
            for threshold in thresholds {
                on_every_driver(&format!("at least {threshold} of {len} {kind}"), |driver| {
                    let launch =
                        |driver: &dyn Driver, s, count| select_at_least(driver, s, count, threshold).unwrap();
                    let (outcome, positions) = select(driver, &values, len, launch);
                    let at = |p: &u32| values[*p as usize] >= threshold;
                    let expected: Vec<u32> = (0..len as u32).filter(at).collect();
                    assert_eq!(outcome, Outcome { selected: expected.len() as u32, nan_position: u32::MAX });
                    assert_eq!(positions[..expected.len()], expected, "seed {SEED}");
                    assert!(
                        positions[expected.len()..].iter().all(|p| *p == u32::MAX),
                        "wrote after the last"
                    );
                    [vec![outcome.selected], positions].concat()
                });
            }
        }
    }
}

#[test]
fn the_first_nan_is_reported() {
    for (len, places) in [(1, vec![0]), (600, vec![599]), (5_000, vec![4_000, 1_025, 1_026])] {
        let mut values = Random::new(2).uniforms(len, 0.0, 5.0);
        for place in &places {
            values[*place] = if place % 2 == 0 { f32::NAN } else { -f32::NAN };
        }
        let first = *places.iter().min().unwrap() as u32;
        on_every_driver(&format!("NaN at {places:?} of {len}"), |driver| {
            let top = |driver: &dyn Driver, s, count| select_top_k(driver, s, count, 1).unwrap();
            let least = |driver: &dyn Driver, s, count| select_at_least(driver, s, count, 1.0).unwrap();
            let outcomes = [select(driver, &values, len, top), select(driver, &values, len, least)];
            for (outcome, positions) in &outcomes {
                assert_eq!(*outcome, Outcome { selected: 0, nan_position: first });
                assert!(positions.iter().all(|p| *p == u32::MAX), "nothing is ranked");
            }
            vec![outcomes[0].0.nan_position]
        });
    }
}
