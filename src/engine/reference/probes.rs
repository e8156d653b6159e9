//! The ceilings of the CPU: products between registers, and a copy, on all threads.

use rayon::prelude::*;

use super::conv::flops_so_far;
use super::engine::Cpu;
use crate::engine::probes::{FLUSH_FACTOR, last_level_cache};
use crate::engine::{Probe, Probes, Result};

/// Rounds of products between registers of a thread in one run: about a millisecond.
const ROUNDS: usize = 200_000;
/// f32 elements of the copy: far more than any cache.
const COPIED: usize = 16 << 20;

impl Probes for Cpu {
    fn product_probe(&self) -> Result<Option<Probe>> {
        let threads = rayon::current_num_threads();
        let (products, isa) = (self.numbers().products(), self.numbers().isa.name);
        let multiply_adds = products.peak(ROUNDS);
        let run = move || {
            (0..threads).into_par_iter().for_each(|_| {
                products.peak(ROUNDS);
            });
            Ok(())
        };
        let what =
            format!("{:?} products between registers, {isa}, {threads} threads", self.numbers().format);
        Ok(Some(Probe::new(what, 2 * multiply_adds * threads as u64, run)))
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
        Some(flops_so_far())
    }
}
