//! What is run to learn what a device reaches at most: products of matrices, a copy of memory, and the flush of every cache.
//!
//! On a GPU products are our convolution on a large GEMM; on the CPU they are products between registers, on all threads. The emulator
//! has no ceilings: its seconds say nothing about any device.

use std::rc::Rc;

use rayon::prelude::*;

use crate::cpu::{self, Format};
use crate::cuda::driver::{Buffer, Driver, FLUSH_FACTOR, last_level_cache};
use crate::cuda::launch::conv::{self, ConvShape, ForwardEpilogue, Product, Reduction};
use crate::engine::{Engine, Result};
use crate::philox::{Key, Purpose};

/// A GEMM of 32,768 x 512 x 4,608: 155 GFLOP.
const SHAPE: ConvShape =
    ConvShape { batch: 512, in_side: 8, in_channels: 512, out_channels: 512, kernel: 3, stride: 1 };
/// Products and copies of a run on a GPU: the wait at its end then weighs nothing.
const ROUNDS: usize = 16;
/// Bytes of a GPU's copy.
const COPIED: usize = 512 << 20;
/// Rounds of products between registers of a thread in one run: about a millisecond.
const REGISTER_ROUNDS: usize = 200_000;
/// f32 elements of the CPU's copy: far more than any cache.
const COPIED_FLOATS: usize = 16 << 20;

/// A known amount of work.
pub struct Probe {
    pub what: String,
    /// Operations or bytes of a run.
    pub amount: u64,
    run: Box<dyn FnMut() -> Result<()>>,
}

impl Probe {
    fn new(what: String, amount: usize, run: impl FnMut() -> Result<()> + 'static) -> Self {
        Self { what, amount: amount as u64, run: Box::new(run) }
    }

    /// Does the work, and waits for it.
    pub fn run(&mut self) -> Result<()> {
        (self.run)()
    }
}

/// Matrix products: the amount is floating-point operations. `None` where they would be no ceiling.
pub fn products(engine: &Engine) -> Result<Option<Probe>> {
    match engine.driver() {
        None => cpu_products(engine).map(Some),
        Some(driver) if driver.info().kind == "cuda" => gpu_products(driver.clone()).map(Some),
        Some(_) => Ok(None),
    }
}

/// A copy of memory: the amount is bytes, read and written. `None` where it would be no ceiling.
pub fn copy(engine: &Engine) -> Result<Option<Probe>> {
    match engine.driver() {
        None => Ok(Some(cpu_copy())),
        Some(driver) if driver.info().kind == "cuda" => gpu_copy(driver.clone()).map(Some),
        Some(_) => Ok(None),
    }
}

/// Overwrites every cache, so that what comes next reads from memory: the amount is bytes written.
pub fn flush(engine: &Engine) -> Result<Probe> {
    match engine.driver() {
        None => Ok(cpu_flush()),
        Some(driver) => gpu_flush(driver.clone()),
    }
}

/// Floating-point operations of all convolutions that this process computed, where the engine counts them itself.
pub fn flops_so_far(engine: &Engine) -> Option<u64> {
    engine.driver().is_none().then(cpu::flops_so_far)
}

/// `len` random bf16 values in [1, 2) and (-2, -1], two a word: a GPU draws more power on these than on zeros, and is slower.
pub fn random_halves(stream: u32, len: usize) -> Vec<u32> {
    let key = Key { seed: 1, purpose: Purpose::Generation, epoch: 0, step: 0 };
    let words = (0..len.div_ceil(8)).flat_map(|block| key.block(stream, block as u32));
    words.map(|word| (word & 0x807f_807f) | 0x3f80_3f80).collect()
}

fn gpu_products(driver: Rc<dyn Driver>) -> Result<Probe> {
    let input = Buffer::from_slice(&driver, "probe input", &random_halves(0, SHAPE.input_len()))?;
    let weights = Buffer::from_slice(&driver, "probe weights", &random_halves(1, SHAPE.weight_len()))?;
    let bias = Buffer::from_slice(&driver, "probe bias", &vec![0f32; SHAPE.out_channels])?;
    let output = Buffer::new(&driver, "probe output", SHAPE.output_len() * 2)?;
    let run = move || {
        let epilogue = ForwardEpilogue::Bias { bias: bias.address() };
        for _ in 0..ROUNDS {
            let (from, weights, to) = (input.address(), weights.address(), output.address());
            let product = Product { shape: &SHAPE, from, weights, to };
            conv::forward(&*driver, Reduction::Whole, product, &epilogue)?;
        }
        driver.synchronize()
    };
    let flops = 2 * SHAPE.output_len() * SHAPE.taps() * SHAPE.in_channels * ROUNDS;
    Ok(Probe::new("our bf16 convolution as a GEMM of 32768 x 512 x 4608".into(), flops, run))
}

fn gpu_copy(driver: Rc<dyn Driver>) -> Result<Probe> {
    let from = Buffer::new(&driver, "copied", COPIED)?;
    let to = Buffer::new(&driver, "copy", COPIED)?;
    let run = move || {
        for _ in 0..ROUNDS {
            driver.copy(from.address(), to.address(), COPIED)?;
        }
        driver.synchronize()
    };
    Ok(Probe::new(format!("copy of {} MiB", COPIED >> 20), 2 * COPIED * ROUNDS, run))
}

fn gpu_flush(driver: Rc<dyn Driver>) -> Result<Probe> {
    let bytes = FLUSH_FACTOR * driver.cache_bytes();
    let buffer = Buffer::new(&driver, "flush of the cache", bytes)?;
    let run = move || {
        driver.fill(buffer.address(), 0, bytes)?;
        driver.synchronize()
    };
    Ok(Probe::new(format!("fill of {} MiB", bytes >> 20), bytes, run))
}

fn cpu_products(engine: &Engine) -> Result<Probe> {
    let format = if engine.device().kind == "cpu:bf16" { Format::Bf16 } else { Format::F32 };
    let numbers = cpu::numbers(format)?;
    let threads = rayon::current_num_threads();
    let products = numbers.products();
    let multiply_adds = products.peak(REGISTER_ROUNDS) as usize;
    let run = move || {
        (0..threads).into_par_iter().for_each(|_| {
            products.peak(REGISTER_ROUNDS);
        });
        Ok(())
    };
    let what = format!("{format:?} products between registers, {}, {threads} threads", numbers.isa.name);
    Ok(Probe::new(what, 2 * multiply_adds * threads, run))
}

fn cpu_copy() -> Probe {
    let (from, mut to) = (vec![1.0f32; COPIED_FLOATS], vec![0.0f32; COPIED_FLOATS]);
    let run = move || {
        let part = COPIED_FLOATS.div_ceil(rayon::current_num_threads());
        to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from));
        std::hint::black_box(&to);
        Ok(())
    };
    let bytes = COPIED_FLOATS * size_of::<f32>();
    Probe::new(format!("copy of {} MiB on all threads", bytes >> 20), 2 * bytes, run)
}

fn cpu_flush() -> Probe {
    let mut buffer = vec![0u8; FLUSH_FACTOR * last_level_cache()];
    let (bytes, mut value) = (buffer.len(), 0u8);
    let run = move || {
        value = value.wrapping_add(1);
        buffer.fill(value);
        std::hint::black_box(&buffer);
        Ok(())
    };
    Probe::new(format!("fill of {} MiB", bytes >> 20), bytes, run)
}
