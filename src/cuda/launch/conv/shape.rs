//! The shape of a convolution and what the kernels require of it.

use super::params::Gather;
use crate::cuda::layout::STEM_CHANNELS;
use crate::engine::{Error, Result};
use crate::model::Conv;

/// One convolution of a batch: kernel 3 with padding 1, or kernel 1 without; square images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    pub batch: usize,
    /// Side of an input image in pixels.
    pub in_side: usize,
    /// Channels as stored: 8 ([`STEM_CHANNELS`]) for the stem.
    pub in_channels: usize,
    pub out_channels: usize,
    /// 3 or 1.
    pub kernel: usize,
    /// 1 or 2.
    pub stride: usize,
}

impl ConvShape {
    /// A layer of the network; the stem's three channels become [`STEM_CHANNELS`].
    pub fn new(conv: &Conv, batch: usize) -> Self {
        Self {
            batch,
            in_side: conv.in_side,
            in_channels: if conv.in_channels == 3 { STEM_CHANNELS } else { conv.in_channels },
            out_channels: conv.out_channels,
            kernel: conv.kernel,
            stride: conv.stride,
        }
    }

    pub fn out_side(&self) -> usize {
        self.in_side / self.stride
    }
    pub fn taps(&self) -> usize {
        self.kernel * self.kernel
    }
    /// Pixels of all input images.
    pub fn input_rows(&self) -> usize {
        self.batch * self.in_side * self.in_side
    }
    /// Pixels of all output images.
    pub fn output_rows(&self) -> usize {
        self.batch * self.out_side() * self.out_side()
    }
    /// Elements of the input.
    pub fn input_len(&self) -> usize {
        self.input_rows() * self.in_channels
    }
    /// Elements of the output.
    pub fn output_len(&self) -> usize {
        self.output_rows() * self.out_channels
    }
    /// Elements of the weights as stored.
    pub fn weight_len(&self) -> usize {
        self.out_channels * self.taps() * self.in_channels
    }
    /// Whether the input is the packed image: hi and lo parts of three channels.
    pub fn is_stem(&self) -> bool {
        self.in_channels == STEM_CHANNELS
    }

    /// What the kernels rely on: sides and channels are powers of two, and 32-bit element offsets reach everywhere.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |what: &str, actual: usize, expected: &str| {
            Err(Error::Invalid(format!("convolution {self:?}: {what} {actual}, the kernels want {expected}")))
        };
        if self.batch == 0 {
            return refuse("batch", 0, "at least 1");
        }
        if !matches!((self.kernel, self.stride), (3, 1 | 2) | (1, 2)) {
            return refuse("kernel", self.kernel, "3 (stride 1 or 2) or 1 (stride 2)");
        }
        for (what, actual) in [("output side", self.out_side()), ("input side", self.in_side)] {
            if !actual.is_power_of_two() {
                return refuse(what, actual, "a power of two");
            }
        }
        if !self.in_channels.is_power_of_two() || self.in_channels < 8 {
            return refuse("input channels", self.in_channels, "a power of two from 8 up");
        }
        if !self.out_channels.is_power_of_two() || self.out_channels < 16 {
            return refuse("output channels", self.out_channels, "a power of two from 16 up");
        }
        let elements = self.input_len().max(self.output_len());
        if elements >= 1 << 31 {
            return refuse("elements", elements, "fewer than 2^31: use a smaller batch");
        }
        Ok(())
    }

    /// Output pixels gathering from the input: forward and weight gradient.
    pub(super) fn input_gather(&self) -> Gather {
        Gather {
            pixels: self.output_rows() as u32,
            log2_grid_side: self.out_side().ilog2(),
            log2_image_side: self.in_side.ilog2(),
            log2_channels: self.in_channels.ilog2(),
            taps: self.taps() as u32,
        }
    }

    /// Input pixels (of one phase, where strided) gathering from the output gradient.
    pub(super) fn output_gather(&self) -> Gather {
        Gather {
            pixels: self.output_rows() as u32,
            log2_grid_side: self.out_side().ilog2(),
            log2_image_side: self.out_side().ilog2(),
            log2_channels: self.out_channels.ilog2(),
            taps: self.taps() as u32,
        }
    }
}
