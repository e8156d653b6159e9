//! What a filter sees: the patches of an image as rows of a matrix (im2col), and gradients of patches back (col2im).
//!
//! The patch of an output pixel holds `kernel x kernel x channels` values in the order (tap line, tap, channel), zero
//! where the filter hangs over the border. In NHWC a patch is `kernel` runs of neighbours, so both ways are short
//! copies or sums. Checked by `tests/reference_pytorch.rs`; called by `conv.rs` and `conv_weight.rs`.

use std::ops::Range;

use crate::model::Conv;

/// The geometry of a convolution over some of its input channels.
#[derive(Clone, Copy, Debug)]
pub struct Patches {
    pub channels: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    in_side: usize,
    out_side: usize,
}

impl Patches {
    pub fn new(conv: &Conv, channels: usize) -> Self {
        let Conv { kernel, stride, in_side, .. } = *conv;
        Self { channels, kernel, stride, padding: conv.padding(), in_side, out_side: conv.out_side() }
    }

    /// Values of one patch.
    pub fn len(&self) -> usize {
        self.kernel * self.kernel * self.channels
    }

    /// Output pixels of one image.
    pub fn pixels(&self) -> usize {
        self.out_side * self.out_side
    }

    /// Elements of one image.
    pub fn image_len(&self) -> usize {
        self.in_side * self.in_side * self.channels
    }

    /// Copies the patches of output pixels `first ..`, counted through all images of `x`, to the rows of `out`.
    pub fn gather(&self, x: &[f32], first: usize, out: &mut [f32]) {
        for (i, patch) in out.chunks_exact_mut(self.len()).enumerate() {
            if self.hangs_over(first + i) {
                patch.fill(0.0);
            }
            self.runs(first + i, |in_patch, in_image| patch[in_patch].copy_from_slice(&x[in_image]));
        }
    }

    /// Adds the rows of `patches` to where output pixels `first ..` of the images in `x` took them from.
    pub fn scatter_add(&self, patches: &[f32], first: usize, x: &mut [f32]) {
        for (i, patch) in patches.chunks_exact(self.len()).enumerate() {
            self.runs(first + i, |in_patch, in_image| {
                x[in_image].iter_mut().zip(&patch[in_patch]).for_each(|(sum, part)| *sum += part);
            });
        }
    }

    /// Whether part of the pixel's patch lies outside the image.
    fn hangs_over(&self, pixel: usize) -> bool {
        let over = |position: usize| {
            let start = position * self.stride;
            start < self.padding || start + self.kernel > self.in_side + self.padding
        };
        over(pixel / self.out_side % self.out_side) || over(pixel % self.out_side)
    }

    /// Calls `each(range in the patch, range in the images)` for every line of the patch, clipped to the image.
    fn runs(&self, pixel: usize, mut each: impl FnMut(Range<usize>, Range<usize>)) {
        let Self { channels, kernel, stride, padding, in_side, out_side } = *self;
        let (image, pixel) = (pixel / (out_side * out_side), pixel % (out_side * out_side));
        let (top, left) = (pixel / out_side * stride, pixel % out_side * stride);
        let taps = |start: usize| padding.saturating_sub(start)..kernel.min(in_side + padding - start);
        let (lines, taps) = (taps(top), taps(left));
        for line in lines {
            let from =
                ((image * in_side + top + line - padding) * in_side + left + taps.start - padding) * channels;
            let to = (line * kernel + taps.start) * channels;
            let len = taps.len() * channels;
            each(to..to + len, from..from + len);
        }
    }
}
