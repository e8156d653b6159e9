//! The ceilings of the CPU: the products that convolutions run on, and a copy, on all threads. Checked by `tests/bench.rs`.

use rayon::prelude::*;

use super::engine::Reference;
use super::memory::Aligned;
use super::product::{self, Matrix, product};
use crate::engine::probes::{FLUSH_FACTOR, last_level_cache};
use crate::engine::{Execution, Phases, Probe, Probes, Result};

/// Rows, columns and depth of a thread's product: its operands stay in a cache near the core.
const SIDE: usize = 256;
/// Products of a thread in one run.
const ROUNDS: usize = 8;
/// f32 elements of the copy: far more than any cache.
const COPIED: usize = 16 << 20;

impl Execution for Reference {}

impl Phases for Reference {}

impl Probes for Reference {
    fn product_probe(&self) -> Result<Option<Probe>> {
        let threads = rayon::current_num_threads();
        let operand = |value: f32| {
            let mut values = Aligned::zeros(SIDE * SIDE);
            values.iter_mut().enumerate().for_each(|(at, to)| *to = value + (at % 7) as f32);
            values
        };
        let (left, right) = (operand(1.0), operand(0.5));
        let mut outputs = vec![Aligned::zeros(SIDE * SIDE); threads];
        let flops = 2 * SIDE * SIDE * SIDE * ROUNDS * threads;
        let run = move || {
            outputs.par_iter_mut().for_each(|out| {
                for _ in 0..ROUNDS {
                    product(Matrix::new(&left, SIDE), Matrix::new(&right, SIDE), out, false);
                }
            });
            Ok(())
        };
        let what = format!("f32 products of {SIDE} x {SIDE} x {SIDE} on {threads} threads");
        Ok(Some(Probe::new(what, flops as u64, run)))
    }

    fn copy_probe(&self) -> Result<Option<Probe>> {
        let (from, mut to) = (vec![1.0f32; COPIED], vec![0.0f32; COPIED]);
        let run = move || {
            let part = COPIED.div_ceil(rayon::current_num_threads());
            to.par_chunks_mut(part)
                .zip(from.par_chunks(part))
                .for_each(|(to, from)| to.copy_from_slice(from));
            std::hint::black_box(&to);
            Ok(())
        };
        let bytes = 2 * COPIED * size_of::<f32>();
        Ok(Some(Probe::new(format!("copy of {} MiB on all threads", (COPIED * 4) >> 20), bytes as u64, run)))
    }

    fn flush_probe(&self) -> Result<Probe> {
        let mut buffer = vec![0u8; FLUSH_FACTOR * last_level_cache()];
        let (bytes, mut value) = (buffer.len(), 0u8);
        let run = move || {
            value = value.wrapping_add(1);
            buffer.fill(value);
            std::hint::black_box(&buffer);
            Ok(())
        };
        Ok(Probe::new(format!("fill of {} MiB", bytes >> 20), bytes as u64, run))
    }

    fn flops_so_far(&self) -> Option<u64> {
        Some(product::flops_so_far())
    }
}
