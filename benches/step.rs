//! Criterion over the harness of `secateur bench`: a training step, its attack, and PGD-20, of PGD-AT at width 16.
//!
//! `cargo bench --bench step`; SECATEUR_BENCH_DEVICE names another device than the CPU. What `secateur bench step` adds is
//! ceilings, other recipes and files to compare.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use secateur::measure::workload::{Bench, Cache, Work};
use secateur::recipe::Recipe;

const BATCH: usize = 32;

fn works(criterion: &mut Criterion) {
    let device = std::env::var("SECATEUR_BENCH_DEVICE").unwrap_or("cpu".into());
    let device = device.parse().expect("SECATEUR_BENCH_DEVICE names a device");
    let recipe = Recipe::load("cifar10-pgd-at", &["model.width=16".into(), format!("batch={BATCH}")])
        .expect("a built-in recipe");
    let mut bench = Bench::open(device, false, &recipe, 1).expect("the device opens");
    let mut group = criterion.benchmark_group("cifar10-pgd-at");
    group.sample_size(10).throughput(Throughput::Elements(BATCH as u64));
    let pgd20 = Work::Evaluation("pgd20".parse().expect("a protocol"));
    for (name, work) in [("step", Work::Step), ("attack", Work::Attack), ("pgd20", pgd20)] {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                let mut once = |_| bench.sample(&work, 1, Cache::Warm).expect("the work is done");
                Duration::from_secs_f64((0..times).map(&mut once).sum())
            });
        });
    }
}

criterion_group!(benches, works);
criterion_main!(benches);
