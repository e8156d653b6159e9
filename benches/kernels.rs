//! Criterion over the harness of `secateur bench kernels`: each kernel, in each shape that a step of PGD-AT has, back to back.
//!
//! `cargo bench --bench kernels -- FILTER`; SECATEUR_BENCH_DEVICE names another device than the emulated one, whose seconds are
//! those of a simulation.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use secateur::measure::replay::shapes;
use secateur::measure::workload::{Bench, Cache, Work};
use secateur::recipe::Recipe;

fn kernels(criterion: &mut Criterion) {
    let device = std::env::var("SECATEUR_BENCH_DEVICE").unwrap_or("emulated".into());
    let device = device.parse().expect("SECATEUR_BENCH_DEVICE names a device with kernels");
    let overrides = ["model.width=16".into(), "batch=4".into(), "attack.steps=1".into()];
    let recipe = Recipe::load("cifar10-pgd-at", &overrides).expect("a built-in recipe");
    let mut bench = Bench::open(device, true, &recipe, 1).expect("the device opens");
    let record = bench.record_replayable(&Work::Step, 1).expect("a step");
    let mut group = criterion.benchmark_group("kernels");
    group.sample_size(10).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_secs(1));
    for shape in shapes(&record) {
        group.throughput(Throughput::Bytes(shape.launch.bytes));
        group.bench_function(&shape.name, |bencher| {
            bencher.iter_custom(|times| {
                let seconds = bench.replay(shape.first, times as usize, Cache::Warm);
                Duration::from_secs_f64(seconds.expect("the launch is made again"))
            });
        });
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
