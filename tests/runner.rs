//! The platform on which kernels run on the host: portable functions against plain loops, and planted faults.

use std::rc::Rc;
use std::time::Instant;

use bytemuck::{Pod, Zeroable};
use half::bf16;
use secateur::engine::cuda::driver::host::HostDriver;
use secateur::engine::cuda::driver::{Address, Buffer, Driver, Kernel, launch};
use secateur::philox::{Key, Purpose, symmetric};

const SEED: u64 = 20_260_101;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ScaleParams {
    x: Address,
    y: Address,
    factor: f32,
    count: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct TileParams {
    a: Address,
    b: Address,
    c: Address,
    k: u32,
    repeat: u32,
}

/// `len` numbers on [-1, 1).
fn numbers(sample: u32, len: usize) -> Vec<f32> {
    let key = Key { seed: SEED, purpose: Purpose::Generation, epoch: 0, step: 0 };
    (0..len.div_ceil(4) as u32)
        .flat_map(|block| key.block(sample, block))
        .map(|word| symmetric(word, 1.0))
        .take(len)
        .collect()
}

#[test]
fn a_kernel_scales_every_element_and_nothing_else() {
    let driver = HostDriver::open();
    let kernel = Kernel::named("test_scale").unwrap();
    for count in [1, 255, 256, 257, 5000] {
        let x = numbers(0, count);
        let input = Buffer::from_slice(&driver, "x", &x).unwrap();
        let output = Buffer::new(&driver, "y", 4 * count + 64).unwrap();
        let params =
            ScaleParams { x: input.address(), y: output.address(), factor: 3.0, count: count as u32 };
        launch(&*driver, &kernel, [(count as u32).div_ceil(256), 1, 1], &params).unwrap();
        let y: Vec<f32> = output.to_vec().unwrap();
        for i in 0..count {
            assert_eq!(y[i], 3.0 * x[i], "seed {SEED}, element {i} of {count}");
        }
        assert!(y[count..].iter().all(|v| v.is_nan()), "wrote behind {count}");
    }
}

fn multiply_tile(driver: &Rc<dyn Driver>, k: usize, repeat: u32) -> (Vec<f32>, Vec<bf16>, Vec<bf16>) {
    let a: Vec<bf16> = numbers(1, 64 * k).into_iter().map(bf16::from_f32).collect();
    let b: Vec<bf16> = numbers(2, k * 32).into_iter().map(bf16::from_f32).collect();
    let buffers = [
        Buffer::from_slice(driver, "a", &a).unwrap(),
        Buffer::from_slice(driver, "b", &b).unwrap(),
        Buffer::new(driver, "c", 4 * 64 * 32).unwrap(),
    ];
    let params = TileParams {
        a: buffers[0].address(),
        b: buffers[1].address(),
        c: buffers[2].address(),
        k: k as u32,
        repeat,
    };
    launch(&**driver, &Kernel::named("test_mma_64x32").unwrap(), [1, 1, 1], &params).unwrap();
    (buffers[2].to_vec().unwrap(), a, b)
}

#[test]
fn a_warp_tile_equals_plain_loops() {
    let driver = HostDriver::open();
    for k in [16, 32, 80, 576] {
        let (c, a, b) = multiply_tile(&driver, k, 1);
        let mut worst = 0.0f64;
        for row in 0..64 {
            for column in 0..32 {
                let exact: f64 = (0..k).map(|i| a[row * k + i].to_f64() * b[i * 32 + column].to_f64()).sum();
                let error = (f64::from(c[row * 32 + column]) - exact).abs();
                assert!(error <= 1e-6 * k as f64, "seed {SEED}, k {k}, ({row}, {column}): error {error}");
                worst = worst.max(error);
            }
        }
        println!("seed {SEED}, k {k}: largest error {worst:.2e}");
    }
}

#[test]
fn speed_of_a_warp_tile_is_printed() {
    let driver = HostDriver::open();
    multiply_tile(&driver, 576, 1);
    let start = Instant::now();
    let repeat = 200;
    multiply_tile(&driver, 576, repeat);
    let flops = 2.0 * 64.0 * 32.0 * 576.0 * f64::from(repeat);
    println!("{:.2} GFLOP/s on one core", flops / start.elapsed().as_secs_f64() / 1e9);
}
