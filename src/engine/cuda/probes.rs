//! The ceilings of a GPU: our convolution on a large GEMM, and a copy; and where the phases of a step go. The host runner has
//! no ceilings: its seconds say nothing about any device. Checked on a GPU by `secateur bench kernels`.

use super::driver::Buffer;
use super::engine::Cuda;
use super::ladder::{ladder, random};
use super::launch::conv::{self, ConvShape, ForwardEpilogue};
use super::predict::predicted_seconds;
use crate::engine::probes::FLUSH_FACTOR;
use crate::engine::{LadderStep, Launch, Probe, Probes, Result};

/// A GEMM of 32,768 x 512 x 4,608: 155 GFLOP.
const SHAPE: ConvShape =
    ConvShape { batch: 512, in_side: 8, in_channels: 512, out_channels: 512, kernel: 3, stride: 1 };
/// Products and copies of a run: the wait at its end then weighs nothing.
const ROUNDS: usize = 16;
const COPIED: usize = 512 << 20;

impl Probes for Cuda {
    fn product_probe(&self) -> Result<Option<Probe>> {
        let driver = self.driver.clone();
        if driver.info().kind != "cuda" {
            return Ok(None);
        }
        let input = Buffer::from_slice(&driver, "probe input", &random(0, SHAPE.input_len()))?;
        let weights = Buffer::from_slice(&driver, "probe weights", &random(1, SHAPE.weight_len()))?;
        let bias = Buffer::from_slice(&driver, "probe bias", &vec![0f32; SHAPE.out_channels])?;
        let output = Buffer::new(&driver, "probe output", SHAPE.output_len() * 2)?;
        let flops = 2 * SHAPE.output_len() * SHAPE.taps() * SHAPE.in_channels * ROUNDS;
        let run = move || {
            let epilogue = ForwardEpilogue::Bias { bias: bias.address() };
            for _ in 0..ROUNDS {
                let (input, weights) = (input.address(), weights.address());
                conv::forward(&*driver, &SHAPE, input, weights, &epilogue, output.address())?;
            }
            driver.synchronize()
        };
        let what = "our bf16 convolution as a GEMM of 32768 x 512 x 4608".into();
        Ok(Some(Probe::new(what, flops as u64, run)))
    }

    fn copy_probe(&self) -> Result<Option<Probe>> {
        let driver = self.driver.clone();
        if driver.info().kind != "cuda" {
            return Ok(None);
        }
        let from = Buffer::new(&driver, "copied", COPIED)?;
        let to = Buffer::new(&driver, "copy", COPIED)?;
        let run = move || {
            for _ in 0..ROUNDS {
                driver.copy(from.address(), to.address(), COPIED)?;
            }
            driver.synchronize()
        };
        Ok(Some(Probe::new(format!("copy of {} MiB", COPIED >> 20), (2 * COPIED * ROUNDS) as u64, run)))
    }

    fn flush_probe(&self) -> Result<Probe> {
        let driver = self.driver.clone();
        let bytes = FLUSH_FACTOR * driver.cache_bytes();
        let buffer = Buffer::new(&driver, "flush of the cache", bytes)?;
        let run = move || {
            driver.fill(buffer.address(), 0, bytes)?;
            driver.synchronize()
        };
        Ok(Probe::new(format!("fill of {} MiB", bytes >> 20), bytes as u64, run))
    }

    fn ladder(&self, batch: usize) -> Result<Vec<LadderStep>> {
        ladder(&self.driver, self.parameters.layout.network, batch)
    }

    fn predicted_seconds(&self, launches: &[Launch]) -> Option<f64> {
        let network = self.parameters.layout.network;
        if self.driver.has_wgmma() { predicted_seconds(launches, network) } else { None }
    }

    fn flops_so_far(&self) -> Option<u64> {
        None
    }
}
