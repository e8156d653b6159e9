//! What becomes of a convolution's sums: bias, what is added, ReLU or its mask, and the numbers that are stored.

#![allow(clippy::needless_range_loop)] // indices stand for lanes

use super::conv::Sums;
use super::maps::Maps;
use super::norm::relu;
use super::numbers::{Number, Numbers};
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

/// Bytes that a prefetch brings.
const CACHE_LINE: usize = 64;

/// What is added, and the gate: kinds that a loop is compiled for.
const NOTHING: u8 = 0;
const MAPS: u8 = 1;
const PRESENT: u8 = 2;
const OPEN: u8 = 0;
const RELU: u8 = 1;
const MASK: u8 = 2;

vectorised! {
    fn write<E>(
        epilogue: &Epilogue,
        maps: Maps,
        line: usize,
        channel: usize,
        sums: &Sums,
        image: &mut [f32],
    ) {
        // A loop for each combination, so that none decides for every vector.
        macro_rules! lines {
            ($added:ident, $gate:ident) => {
                lines::<E, $added, $gate>(epilogue, maps, line, channel, sums, image)
            };
        }
        match (epilogue.added, epilogue.gate) {
            (Added::Nothing, Gate::Open) => lines!(NOTHING, OPEN),
            (Added::Nothing, Gate::Relu) => lines!(NOTHING, RELU),
            (Added::Nothing, Gate::Mask(_)) => lines!(NOTHING, MASK),
            (Added::Maps(_), Gate::Open) => lines!(MAPS, OPEN),
            (Added::Maps(_), Gate::Relu) => lines!(MAPS, RELU),
            (Added::Maps(_), Gate::Mask(_)) => lines!(MAPS, MASK),
            (Added::Present, Gate::Open) => lines!(PRESENT, OPEN),
            (Added::Present, Gate::Relu) => lines!(PRESENT, RELU),
            (Added::Present, Gate::Mask(_)) => lines!(PRESENT, MASK),
        }
    }
}

#[inline(always)]
fn lines<E: Number, const ADDED: u8, const GATE: u8>(
    epilogue: &Epilogue,
    maps: Maps,
    line: usize,
    channel: usize,
    sums: &Sums,
    image: &mut [f32],
) {
    let Sums { pitch, block, .. } = *sums;
    // To what the sums that come next will meet.
    let ahead = sums.lines * maps.across() * maps.channels;
    for (at, sums) in sums.values.chunks_exact(pitch * block).take(sums.lines).enumerate() {
        let y = line + at;
        let added: &[E] = match epilogue.added {
            Added::Maps(added) => maps.line(added, y),
            _ => &[],
        };
        let mask: &[E] = match epilogue.gate {
            Gate::Mask(mask) => maps.line(mask, y),
            _ => &[],
        };
        let out: &mut [E] = maps.line_mut(image, y);
        for vector in (0..block).step_by(LANES) {
            let channel = channel + vector;
            if (vector * size_of::<E>()).is_multiple_of(CACHE_LINE) {
                for x in 0..maps.side {
                    let at = x * maps.channels + channel + ahead;
                    if ADDED == MAPS {
                        prefetch(added, at);
                    }
                    if GATE == MASK {
                        prefetch(mask, at);
                    }
                    prefetch(out, at);
                }
            }
            // -0 changes no sum.
            let bias = epilogue.bias.map_or([-0.0; LANES], |bias| load(bias, channel));
            for x in 0..maps.side {
                let at = x * maps.channels + channel;
                let mut values = load(sums, x * block + vector);
                add(&mut values, bias);
                match ADDED {
                    MAPS => add(&mut values, load(added, at)),
                    PRESENT => add(&mut values, load(out, at)),
                    _ => {}
                }
                match GATE {
                    RELU => {
                        for i in 0..LANES {
                            values[i] = relu(values[i]);
                        }
                    }
                    MASK => {
                        let mask = load(mask, at);
                        for i in 0..LANES {
                            values[i] = if mask[i] > 0.0 { values[i] } else { 0.0 };
                        }
                    }
                    _ => {}
                }
                store(out, at, &values);
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
