//! What the tests of kernels for Hopper share: the emulator with every freedom it has, a GPU where there is one, launches, and
//! plain tensor maps.

use std::rc::Rc;

use half::bf16;
use secateur::cuda::driver::device::DeviceDriver;
use secateur::cuda::driver::host::{AsyncOrder, HostDriver, HostOptions, WarpOrder};
use secateur::cuda::driver::{Address, Cost, Driver, Image, Kernel, Swizzle, TiledMap, add_code, launch};
use secateur::engine::Error;

/// The emulator with its warps and its asynchronous copies in each order, and a name for messages.
pub fn emulators() -> Vec<(String, Rc<dyn Driver>)> {
    let mut emulators = Vec::new();
    for warp_order in [WarpOrder::Forward, WarpOrder::Reversed] {
        for async_order in [AsyncOrder::Late, AsyncOrder::Early] {
            emulators.push((format!("{warp_order:?}, {async_order:?}"), emulator(warp_order, async_order)));
        }
    }
    emulators
}

/// Has a GPU find the kernels of tests and ablations.
pub fn add_extra_code() {
    const EXTRA: &[Image] = include!(concat!(env!("OUT_DIR"), "/extra_images.rs"));
    add_code(EXTRA);
}

/// The emulators, and the first GPU where it is a Hopper and this build has code for it.
pub fn hoppers() -> Vec<(String, Rc<dyn Driver>)> {
    add_extra_code();
    let mut drivers = emulators();
    match DeviceDriver::open(0) {
        Ok(driver) if driver.has_wgmma() => drivers.push(("GPU".into(), driver)),
        Ok(_) | Err(Error::Unavailable(_)) => {}
        Err(error) => panic!("GPU 0: {error}"),
    }
    drivers
}

pub fn emulator(warp_order: WarpOrder, async_order: AsyncOrder) -> Rc<dyn Driver> {
    HostDriver::with(HostOptions { warp_order, async_order, hopper: true, ..HostOptions::default() })
}

pub fn run<P: bytemuck::Pod>(
    driver: &Rc<dyn Driver>,
    kernel: &str,
    blocks: u32,
    params: &P,
) -> Result<(), String> {
    let kernel = Kernel::named(kernel).map_err(|e| e.to_string())?;
    launch(&**driver, &kernel, [blocks, 1, 1], params, Cost::default()).map_err(|e| e.to_string())
}

/// A dense matrix of `rows` x `columns` bf16, its boxes 64 columns wide, swizzled by 128 bytes.
pub fn matrix_map(address: Address, rows: usize, columns: usize, box_rows: usize) -> TiledMap {
    TiledMap {
        address,
        element_bytes: 2,
        dims: vec![columns as u64, rows as u64],
        strides: vec![2 * columns as u64],
        box_dims: vec![64, box_rows as u32],
        element_strides: vec![1, 1],
        swizzle: Swizzle::Bytes128,
    }
}

/// Row-major `a` (rows x k) times `b` (k x columns) in f64.
pub fn product(
    [rows, columns, k]: [usize; 3],
    a: impl Fn(usize, usize) -> bf16,
    b: impl Fn(usize, usize) -> bf16,
) -> Vec<f64> {
    (0..rows * columns)
        .map(|i| (0..k).map(|k| a(i / columns, k).to_f64() * b(k, i % columns).to_f64()).sum())
        .collect()
}
