//! Kernels by themselves: each shape that a training step launches is launched again and again, with every cache overwritten
//! before a sample (cold), and in batches back to back (warm).

use std::collections::BTreeMap;

use super::ceilings::Ceilings;
use super::document::Row;
use super::harness::{Rule, sample};
use super::predict::predicted_seconds;
use super::workload::{Bench, Cache, Work};
use crate::engine::{Launch, Record};

/// Seconds of a batch of launches at least, and launches at most: the events around it then weigh nothing.
const BATCH_SECONDS: f64 = 2e-3;
const BATCH_LAUNCHES: f64 = 512.0;

/// One kernel in one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Symbol, grid and bytes.
    pub name: String,
    pub launch: Launch,
    /// Its first launch in the record.
    pub first: usize,
    /// Launches in the record.
    pub calls: u64,
}

/// The shapes in a record, by name.
pub fn shapes(record: &Record) -> Vec<Shape> {
    let mut shapes: BTreeMap<String, Shape> = BTreeMap::new();
    for (first, launch) in record.launches.iter().enumerate() {
        let [x, y, z] = launch.grid;
        let name = format!("{} {x}x{y}x{z} {:.3} MB", launch.kernel, launch.bytes as f64 / 1e6);
        let new = || Shape { name: name.clone(), launch: *launch, first, calls: 0 };
        shapes.entry(name.clone()).or_insert_with(new).calls += 1;
    }
    shapes.into_values().collect()
}

/// How to sample.
pub struct Plan<'a> {
    /// Of each shape and cache; its seconds are those of all of them together.
    pub rule: Rule,
    pub caches: &'a [Cache],
    /// Which rows, by name, to sample at all.
    pub expected: &'a dyn Fn(&str) -> bool,
    pub stop: &'a dyn Fn() -> bool,
}

/// Samples the kernels of a step of the recipe that `bench` is open for; returns the record of the step, or `None` where
/// `plan.stop` returned true. `add` takes each row once it is measured, and how many there will be.
pub fn kernel_rows(
    bench: &mut Bench,
    plan: &Plan,
    ceilings: &Ceilings,
    add: &mut dyn FnMut(Row, usize) -> anyhow::Result<()>,
) -> anyhow::Result<Option<Record>> {
    // Loads code and touches memory.
    bench.run(&Work::Step, 1)?;
    let mut record = bench.record_replayable(&Work::Step, 1)?;
    let recipe = bench.recipe().name.clone();
    let named = |shape: &Shape| format!("{recipe} {}", shape.name);
    let shapes: Vec<Shape> =
        shapes(&record).into_iter().filter(|shape| (plan.expected)(&named(shape))).collect();
    let samplings = shapes.len() * plan.caches.len();
    let rule = Rule { seconds: plan.rule.seconds / samplings.max(1) as f64, ..plan.rule };
    for shape in &shapes {
        for &cache in plan.caches {
            let times = match cache {
                Cache::Cold => 1,
                Cache::Warm => batch_of(bench.replay(shape.first, 1, cache)?),
            };
            let mut once = || bench.replay(shape.first, times, cache).map(|seconds| seconds / times as f64);
            let Some(samples) = sample(&rule, plan.stop, &mut once)? else { return Ok(None) };
            let amounts = [shape.launch.flops as f64, shape.launch.bytes as f64];
            if let Some(row) = Row::new(named(shape), cache, samples, 0, amounts, ceilings) {
                let predicted = predicted_seconds(&bench.engine, &[shape.launch]);
                add(Row { calls: shape.calls, predicted, ..row }, samplings)?;
            }
        }
    }
    record.launches.retain(|launch| shapes.iter().any(|shape| shape.launch.kernel == launch.kernel));
    Ok(Some(record))
}

/// Launches of a batch whose first took `seconds`.
fn batch_of(seconds: f64) -> usize {
    (BATCH_SECONDS / seconds.max(1e-9)).clamp(1.0, BATCH_LAUNCHES).ceil() as usize
}
