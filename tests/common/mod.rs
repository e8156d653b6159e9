//! What tests share. Here: drivers, random numbers, guarded buffers, and bounds on errors.
//!
//! An oracle computes in f64 from the very operands that the kernel reads. A comparison bounds the error of every element
//! and of the tensor as a whole: the first finds a few wrong elements, the second a small error everywhere.
#![allow(dead_code)] // each executable uses a part

pub mod boundary;
pub mod conv;
pub mod evaluated;
pub mod grad_pass;
pub mod hopper;
pub mod matrix;
pub mod npz;
pub mod page;
pub mod pairs;
pub mod program;
pub mod tiny;

use std::rc::Rc;

use half::bf16;
use secateur::cuda::driver::device::DeviceDriver;
use secateur::cuda::driver::host::{HostDriver, WarpOrder};
use secateur::cuda::driver::{Address, Buffer, Driver};
use secateur::engine::{DeviceChoice, Error};
use secateur::philox::{Key, Purpose, unit};

pub const SEED: u64 = 20_261_121;

/// The device of the tests that compare the cuda engine as a whole with the reference: the emulator, or what
/// SECATEUR_TEST_DEVICE names.
pub fn cuda_engine() -> DeviceChoice {
    match std::env::var("SECATEUR_TEST_DEVICE") {
        Ok(name) => name.parse().expect("SECATEUR_TEST_DEVICE"),
        Err(_) => DeviceChoice::Emulated,
    }
}

/// Every driver that a kernel can run on here: the emulator with its warps in both orders, and the first GPU where this
/// machine and this build have one. Where SECATEUR_TEST_DEVICE is `cuda`, that GPU alone, and it must be there.
pub fn drivers() -> Vec<(&'static str, Rc<dyn Driver>)> {
    if std::env::var("SECATEUR_TEST_DEVICE").is_ok_and(|name| name == "cuda") {
        return vec![("GPU", DeviceDriver::open(0).unwrap_or_else(|error| panic!("GPU 0: {error}")))];
    }
    let mut drivers = vec![
        ("host", HostDriver::open()),
        ("host, last warp first", HostDriver::with_warp_order(WarpOrder::Reversed)),
    ];
    match DeviceDriver::open(0) {
        Ok(driver) => drivers.push(("GPU", driver)),
        Err(Error::Unavailable(_)) => {}
        Err(error) => panic!("GPU 0: {error}"),
    }
    drivers
}

/// Runs `test` twice on every driver; the words that it returns must be the same in both runs.
pub fn on_every_driver(name: &str, test: impl Fn(&Rc<dyn Driver>) -> Vec<u32>) {
    println!("{name}: seed {SEED}");
    for (kind, driver) in drivers() {
        let (first, second) = (test(&driver), test(&driver));
        assert!(!first.is_empty(), "{name} on {kind}: the test returned no words to compare");
        assert_eq!(first.len(), second.len(), "{name} on {kind}");
        let differs = first.iter().zip(&second).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{name} on {kind}, seed {SEED}: two runs differ at this word");
    }
}

/// A stream of random numbers; `stream` tells the tensors of a test apart.
pub struct Random {
    key: Key,
    stream: u32,
    block: u32,
    words: Vec<u32>,
}

impl Random {
    pub fn new(stream: u32) -> Self {
        let key = Key { seed: SEED, purpose: Purpose::Generation, epoch: 0, step: 0 };
        Self { key, stream, block: 0, words: Vec::new() }
    }
    pub fn word(&mut self) -> u32 {
        if self.words.is_empty() {
            self.words = self.key.block(self.stream, self.block).to_vec();
            self.block += 1;
        }
        self.words.pop().unwrap()
    }
    pub fn uniform(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * unit(self.word())
    }
    pub fn normal(&mut self) -> f32 {
        let (u, v) = (unit(self.word()), unit(self.word()));
        (-2.0 * (1.0 - u).ln()).sqrt() * (std::f32::consts::TAU * v).cos()
    }
    pub fn uniforms(&mut self, len: usize, low: f32, high: f32) -> Vec<f32> {
        (0..len).map(|_| self.uniform(low, high)).collect()
    }
    pub fn normals(&mut self, len: usize, deviation: f32) -> Vec<f32> {
        (0..len).map(|_| deviation * self.normal()).collect()
    }
    pub fn bf16s(&mut self, len: usize, deviation: f32) -> Vec<bf16> {
        (0..len).map(|_| bf16::from_f32(deviation * self.normal())).collect()
    }
    /// One bit an element, set for about half of them.
    pub fn mask(&mut self, elements: usize) -> Vec<u8> {
        (0..elements.div_ceil(8)).map(|_| self.word() as u8).collect()
    }
}

/// Bit `element` of a mask.
pub fn bit(mask: &[u8], element: usize) -> bool {
    mask[element / 8] >> (element % 8) & 1 == 1
}

/// An operand of a kernel.
pub fn input<T: bytemuck::Pod>(driver: &Rc<dyn Driver>, name: &'static str, values: &[T]) -> Buffer {
    Buffer::from_slice(driver, name, values).unwrap()
}

/// Memory for a kernel to write: NaN before, with a guard after it that must not change.
pub struct Output {
    buffer: Buffer,
    bytes: usize,
}

const GUARD: usize = 64;

impl Output {
    pub fn new<T>(driver: &Rc<dyn Driver>, name: &'static str, len: usize) -> Self {
        let bytes = len * size_of::<T>();
        let buffer = Buffer::new(driver, name, bytes + GUARD).unwrap();
        driver.fill(buffer.address(), 0xFF, bytes + GUARD).unwrap();
        Self { buffer, bytes }
    }
    /// Memory that the kernel reads as well.
    pub fn holding<T: bytemuck::Pod>(driver: &Rc<dyn Driver>, name: &'static str, values: &[T]) -> Self {
        let output = Self::new::<T>(driver, name, values.len());
        driver.write(output.address(), bytemuck::cast_slice(values)).unwrap();
        output
    }
    pub fn address(&self) -> Address {
        self.buffer.address()
    }
    pub fn read<T: bytemuck::Pod>(&self) -> Vec<T> {
        let bytes: Vec<u8> = self.buffer.to_vec().unwrap();
        let guard = &bytes[self.bytes..];
        assert!(guard.iter().all(|b| *b == 0xFF), "{}: written beyond its end", self.buffer.name());
        bytes[..self.bytes].chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }
}

/// The largest error allowed.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// Of an element: `absolute + relative * |wanted|`.
    pub absolute: f64,
    pub relative: f64,
    /// Of the tensor: norm of the error over norm of what is wanted.
    pub whole: f64,
}

/// For results that a kernel rounds to bf16 once: half a unit in the last place is 2^-8 of a value at worst, and its root
/// mean square 2^-8 / sqrt(3).
pub const ROUNDED_TO_BF16: Bound = Bound { absolute: 1e-6, relative: 0.00392, whole: 0.0023 };
/// For short f32 sums.
pub const F32: Bound = Bound { absolute: 1e-6, relative: 2e-6, whole: 1e-6 };

/// Panics, naming the worst element, unless `actual` is within `bound` of `expected`.
pub fn assert_close<T: Copy + Into<f64>>(what: &str, actual: &[T], expected: &[f64], bound: Bound) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    let (mut error, mut norm, mut worst) = (0.0, 0.0, (0.0, 0));
    for (i, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let actual: f64 = (*actual).into();
        assert!(actual.is_finite(), "{what}, seed {SEED}: element {i} is {actual}, expected {expected}");
        let difference = (actual - expected).abs();
        let excess = difference / (bound.absolute + bound.relative * expected.abs());
        if excess > worst.0 {
            worst = (excess, i);
        }
        error += difference * difference;
        norm += expected * expected;
    }
    let (excess, i) = worst;
    assert!(
        excess <= 1.0,
        "{what}, seed {SEED}: element {i} is {}, expected {}: {excess:.3} times the bound {bound:?}",
        actual[i].into(),
        expected[i]
    );
    let whole = (error / norm.max(f64::MIN_POSITIVE)).sqrt();
    assert!(
        error == 0.0 || whole <= bound.whole,
        "{what}, seed {SEED}: whole-tensor error {whole:e}, {bound:?}"
    );
}

/// Words to compare between runs.
pub fn words<T: bytemuck::Pod>(values: &[T]) -> Vec<u32> {
    bytemuck::cast_slice::<T, u8>(values)
        .chunks(4)
        .map(|bytes| {
            let mut word = [0; 4];
            word[..bytes.len()].copy_from_slice(bytes);
            u32::from_le_bytes(word)
        })
        .collect()
}
