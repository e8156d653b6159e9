//! What becomes of a convolution's sums: bias, what is added, ReLU or its mask, and the numbers that are stored.

#![allow(clippy::needless_range_loop)] // indices stand for lanes

use super::conv::Sums;
use super::maps::Maps;
use super::norm::relu;
use super::numbers::Numbers;
use super::tiles::LANES;
use super::vectorised::{load, store, vectorised};

/// `gate(sum + bias + added)`, of [`Maps`] that begin at the first image written.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// One a channel.
    pub bias: Option<&'a [f32]>,
    pub added: Added<'a>,
    pub gate: Gate<'a>,
}

#[derive(Clone, Copy, Default)]
pub enum Added<'a> {
    #[default]
    Nothing,
    /// Other maps.
    Maps(&'a [f32]),
    /// What the sums overwrite.
    Present,
}

#[derive(Clone, Copy, Default)]
pub enum Gate<'a> {
    #[default]
    Open,
    Relu,
    /// Zero where these activations are not positive.
    Mask(&'a [f32]),
}

impl<'a> Epilogue<'a> {
    /// Of the maps from word `at` on.
    pub fn from(self, at: usize) -> Self {
        let added = match self.added {
            Added::Maps(maps) => Added::Maps(&maps[at..]),
            other => other,
        };
        let gate = match self.gate {
            Gate::Mask(maps) => Gate::Mask(&maps[at..]),
            other => other,
        };
        Self { added, gate, ..self }
    }

    /// Writes sums of a block of channels from `channel` on and of lines from `line` on to an image that begins at word `at` of its
    /// maps.
    #[allow(clippy::too_many_arguments)]
    pub fn write(
        &self,
        numbers: Numbers,
        maps: Maps,
        line: usize,
        channel: usize,
        sums: &Sums,
        at: usize,
        image: &mut [f32],
    ) {
        write(numbers, &self.from(at), maps, line, channel, sums, image);
    }
}

vectorised! {
    fn write<E>(
        epilogue: &Epilogue,
        maps: Maps,
        line: usize,
        channel: usize,
        sums: &Sums,
        image: &mut [f32],
    ) {
        for (at, sums_of_line) in sums.values.chunks_exact(sums.pitch * sums.block).take(sums.lines).enumerate()
        {
            let y = line + at;
            let added: Option<&[E]> = match epilogue.added {
                Added::Maps(added) => Some(maps.line(added, y)),
                _ => None,
            };
            let mask: Option<&[E]> = match epilogue.gate {
                Gate::Mask(mask) => Some(maps.line(mask, y)),
                _ => None,
            };
            let out: &mut [E] = maps.line_mut(image, y);
            // What the sums that come next will meet.
            let ahead = sums.lines * maps.across() * maps.channels;
            for x in 0..maps.side {
                let sums = &sums_of_line[x * sums.block..][..sums.block];
                for (vector, sums) in sums.as_chunks::<LANES>().0.iter().enumerate() {
                    let channel = channel + vector * LANES;
                    let at = x * maps.channels + channel;
                    if let Some(added) = added {
                        prefetch(added, at + ahead);
                    }
                    if let Some(mask) = mask {
                        prefetch(mask, at + ahead);
                    }
                    prefetch(out, at + ahead);
                    let mut values = *sums;
                    if let Some(bias) = epilogue.bias {
                        add(&mut values, load(bias, channel));
                    }
                    match (epilogue.added, added) {
                        (Added::Nothing, _) => {}
                        (Added::Present, _) => add(&mut values, load(out, at)),
                        (_, added) => add(&mut values, load(added.expect("maps"), at)),
                    }
                    match (epilogue.gate, mask) {
                        (Gate::Open, _) => {}
                        (Gate::Relu, _) => {
                            for i in 0..LANES {
                                values[i] = relu(values[i]);
                            }
                        }
                        (_, mask) => {
                            let mask = load(mask.expect("a mask"), at);
                            for i in 0..LANES {
                                values[i] = if mask[i] > 0.0 { values[i] } else { 0.0 };
                            }
                        }
                    }
                    store(out, at, &values);
                }
            }
        }
    }
}

/// Asks for a number that may lie after the slice.
#[inline(always)]
fn prefetch<E>(of: &[E], at: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which no address makes a fault.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(of.as_ptr().wrapping_add(at).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (of, at);
}

#[inline(always)]
fn add(values: &mut [f32; LANES], added: [f32; LANES]) {
    for i in 0..LANES {
        values[i] += added[i];
    }
}
