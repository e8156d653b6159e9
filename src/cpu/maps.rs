//! Activations and gradients as convolutions read them: NHWC, each image in a border of zeros one pixel wide, so that no filter
//! hangs over an edge and a line of its taps is one run of words.
//!
//! A buffer holds maps of one shape for good: its border is zero from the start, and nothing writes there.

use super::memory::Aligned;
use super::numbers::{Format, Number};
use crate::model::Conv;

/// Pixels of zeros on each side.
pub const BORDER: usize = 1;
/// Pixels that a tile may read after the last image.
const SLACK: usize = 32;

/// The shape of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maps {
    pub side: usize,
    pub channels: usize,
    per_word: usize,
}

impl Maps {
    pub fn new(side: usize, channels: usize, format: Format) -> Self {
        Self { side, channels, per_word: format.per_word() }
    }

    /// What `conv` reads.
    pub fn input(conv: &Conv, format: Format) -> Self {
        Self::new(conv.in_side, conv.in_channels, format)
    }

    /// What it writes.
    pub fn output(conv: &Conv, format: Format) -> Self {
        Self::new(conv.out_side(), conv.out_channels, format)
    }

    /// Pixels of a line with its border.
    pub fn across(&self) -> usize {
        self.side + 2 * BORDER
    }

    /// Words of a pixel.
    pub fn pixel(&self) -> usize {
        self.channels / self.per_word
    }

    /// Words of a line with its border.
    pub fn pitch(&self) -> usize {
        self.across() * self.pixel()
    }

    /// Words of an image with its border.
    pub fn image(&self) -> usize {
        self.across() * self.pitch()
    }

    /// Words of a buffer for `batch` images.
    pub fn words(&self, batch: usize) -> usize {
        batch * self.image() + SLACK * self.pixel()
    }

    /// Makes room for `batch` images.
    pub fn reserve(&self, buffer: &mut Aligned, batch: usize) {
        buffer.reserve(self.words(batch));
    }

    /// The numbers of line `y`, without the border, of one image.
    #[inline(always)]
    pub fn line<'a, E: Number>(&self, image: &'a [f32], y: usize) -> &'a [E] {
        &bytemuck::cast_slice(image)[self.start(y)..][..self.side * self.channels]
    }

    /// The same, to write.
    #[inline(always)]
    pub fn line_mut<'a, E: Number>(&self, image: &'a mut [f32], y: usize) -> &'a mut [E] {
        &mut bytemuck::cast_slice_mut(image)[self.start(y)..][..self.side * self.channels]
    }

    /// Where line `y` begins, in numbers.
    fn start(&self, y: usize) -> usize {
        ((y + BORDER) * self.across() + BORDER) * self.channels
    }
}
