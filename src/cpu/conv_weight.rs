//! The weight gradient of a convolution: inputs times output gradients, summed over pixels.
//!
//! A task owns a block of output channels and a run of images. The partial sums of the runs are then added in their order. How the
//! work is split depends on the batch, never on the number of threads.

use std::ops::Range;

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::conv::{LEAST, count_flops};
use super::maps::{BORDER, Maps};
use super::memory::{Aligned, with_scratch};
use super::numbers::{Format, Numbers};
use super::tiles::Pixel;
use super::vectorised::vectorised;
use crate::model::Conv;

/// Output channels of one task, where they divide those of the convolution; else one task has them all.
const COLUMNS: usize = 64;
/// Tasks to aim for: enough for many cores, few enough that partial sums stay small.
const TASKS: usize = 32;
/// Pixels over which sums stay in registers, at least.
const PANEL: usize = 256;

/// How one weight gradient is cut into tasks.
struct Split {
    columns: usize,
    groups: usize,
    run: usize,
    runs: usize,
    /// Elements of a task's sums.
    partial: usize,
}

impl Split {
    fn new(conv: &Conv, batch: usize) -> Self {
        let columns = if conv.out_channels.is_multiple_of(COLUMNS) { COLUMNS } else { conv.out_channels };
        let groups = conv.out_channels / columns;
        let pixels = conv.out_side() * conv.out_side();
        let run = batch.div_ceil(TASKS.div_ceil(groups)).max(PANEL.div_ceil(pixels));
        let partial = conv.weight_len() / groups;
        Self { columns, groups, run, runs: batch.div_ceil(run), partial }
    }
}

/// The order of a task's sums.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// (tap, channel) x column.
    ColumnsLast,
    /// Column x (tap, channel).
    ColumnsFirst,
}

/// Sets `gradient` (K, C, R, S) to the weight gradient over `batch` images, or adds it where `accumulate`. `dy` are [`Maps`], and so is
/// `x` where it is no images.
#[allow(clippy::too_many_arguments)]
pub fn weight_gradient(
    conv: &Conv,
    numbers: Numbers,
    batch: usize,
    x: &[f32],
    dy: &[f32],
    partials: &mut Aligned,
    gradient: &mut [f32],
    accumulate: bool,
) {
    count_flops(conv, batch);
    let split = Split::new(conv, batch);
    let len = split.runs * split.groups * split.partial;
    partials.reserve(len);
    let partials = &mut partials[..len];
    let work = Work::new(conv, numbers, split.columns);
    partials.par_chunks_mut(split.partial).enumerate().for_each(|(task, partial)| {
        let images = task / split.groups * split.run..((task / split.groups + 1) * split.run).min(batch);
        let first = task % split.groups * split.columns;
        partial.fill(0.0);
        for start in images.clone().step_by(work.panel) {
            work.add_panel(start..(start + work.panel).min(images.end), x, dy, first, partial);
        }
    });
    reduce(conv, &split, work.order(), partials, gradient, accumulate);
}

/// What all tasks of a weight gradient know.
struct Work<'a> {
    conv: &'a Conv,
    numbers: Numbers,
    /// Of the products: an image is not made of bf16 numbers.
    format: Format,
    /// Inputs with their border, one channel a word.
    x: Maps,
    dy: Maps,
    columns: usize,
    /// Images of a panel.
    panel: usize,
}

impl<'a> Work<'a> {
    fn new(conv: &'a Conv, numbers: Numbers, columns: usize) -> Self {
        let format = if conv.in_channels < LEAST { Format::F32 } else { numbers.format };
        Self {
            conv,
            numbers,
            format,
            x: Maps::input(conv, Format::F32),
            dy: Maps::output(conv, numbers.format),
            columns,
            panel: PANEL.div_ceil(conv.out_side() * conv.out_side()),
        }
    }

    fn products(&self) -> &'static super::tiles::Products {
        Numbers { format: self.format, ..self.numbers }.products()
    }

    fn order(&self) -> Order {
        if self.products().has_outer() { Order::ColumnsLast } else { Order::ColumnsFirst }
    }

    /// Adds the products of all pixels of some images to `partial`, of the columns from `first` on.
    fn add_panel(&self, images: Range<usize>, x: &[f32], dy: &[f32], first: usize, partial: &mut [f32]) {
        let (image, maps, count) = (self.x.image(), self.dy, images.len());
        if self.numbers.format == Format::F32 && self.conv.in_channels >= LEAST {
            // Both are words as they are.
            let (x, dy) = (&x[images.start * image..], &dy[images.start * maps.image() + first..]);
            let place =
                |n, y, x| n * maps.image() + (y + BORDER) * maps.pitch() + (x + BORDER) * maps.channels;
            return self.add_vectors(count, x, dy, place, partial);
        }
        with_scratch(count * image + SLACK * self.x.channels, |input| {
            let (words, slack) = input.split_at_mut(count * image);
            slack.fill(0.0);
            for (n, words) in images.clone().zip(words.chunks_exact_mut(image)) {
                self.input_words(x, n, words);
            }
            if self.order() == Order::ColumnsFirst {
                return self.add_tiles(images, input, dy, first, partial);
            }
            let (side, across) = (maps.side, maps.side / self.format.per_word());
            with_scratch(count * side * across * self.columns, |gradient| {
                self.gradient_words(images, 0..side, dy, first, gradient);
                let place = |n, y, x| ((n * side + y) * across + x) * self.columns;
                self.add_vectors(count, input, gradient, place, partial);
            });
        });
    }

    /// The words of image `n`: of bf16 numbers pairs of a channel at two neighbouring output pixels.
    fn input_words(&self, x: &[f32], n: usize, words: &mut [f32]) {
        let Conv { in_channels, stride, .. } = *self.conv;
        if self.format == Format::Bf16 {
            let maps = Maps::input(self.conv, Format::Bf16);
            let numbers: &[half::bf16] = bytemuck::cast_slice(&x[n * maps.image()..][..maps.image()]);
            let (whole, last) = words.split_at_mut(words.len() - stride * in_channels);
            pair_up(self.numbers, numbers, &numbers[stride * in_channels..], whole);
            last.fill(0.0);
        } else {
            // An image.
            words.fill(0.0);
            let line = self.x.side * in_channels;
            let x = &x[n * self.conv.input_len()..][..self.conv.input_len()];
            for (y, x) in x.chunks_exact(line).enumerate() {
                self.x.line_mut(words, y).copy_from_slice(x);
            }
        }
    }

    /// Where the taps of the first output pixel begin, in words.
    fn origin(&self) -> usize {
        (BORDER - self.conv.padding()) * (self.x.pitch() + self.x.channels)
    }

    /// By vectors: `place(n, y, x)` of the words of a line are where their gradient lies.
    fn add_vectors(
        &self,
        images: usize,
        input: &[f32],
        gradient: &[f32],
        place: impl Fn(usize, usize, usize) -> usize,
        partial: &mut [f32],
    ) {
        let Conv { in_channels, kernel, stride, .. } = *self.conv;
        let (columns, per_word, side) = (self.columns, self.format.per_word(), self.dy.side);
        let (across, products) = (side / per_word, self.products());
        let (block, rows) = (products.block(columns), kernel * in_channels);
        let pixels: Vec<Pixel> = (0..images * side * across)
            .map(|at| {
                let (n, y, x) = (at / (side * across), at / across % side, at % across);
                let input = y * stride * self.x.pitch() + x * per_word * stride * in_channels;
                Pixel { input: n * self.x.image() + input, output: place(n, y, x) }
            })
            .collect();
        for (line, partial) in partial.chunks_exact_mut(rows * columns).enumerate() {
            let input = &input[self.origin() + line * self.x.pitch()..];
            for column in (0..columns).step_by(block) {
                let (gradient, sums) = (&gradient[column..], &mut partial[column..]);
                products.outer(block, input, &pixels, gradient, rows, sums, columns);
            }
        }
    }

    /// Output gradients of the columns as words: of bf16 numbers pairs of neighbouring pixels, of f32 where products are so.
    fn gradient_words(
        &self,
        images: Range<usize>,
        lines: Range<usize>,
        dy: &[f32],
        first: usize,
        words: &mut [f32],
    ) {
        let (columns, channels, side) = (self.columns, self.dy.channels, self.dy.side);
        let lines = images.flat_map(|n| lines.clone().map(move |y| (n, y)));
        let per_line = side / self.format.per_word() * columns;
        for (words, (n, y)) in words.chunks_exact_mut(per_line).zip(lines) {
            let image = &dy[n * self.dy.image()..][..self.dy.image()];
            if self.format == Format::Bf16 {
                let pixels = self.dy.line::<half::bf16>(image, y).chunks_exact(2 * channels);
                for (words, pixels) in words.chunks_exact_mut(columns).zip(pixels) {
                    let (a, b) = pixels.split_at(channels);
                    pair_up(self.numbers, &a[first..], &b[first..], words);
                }
            } else {
                copy_columns(self.numbers, self.dy, image, y, first, columns, words);
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn add_tiles(&self, _: Range<usize>, _: &[f32], _: &[f32], _: usize, _: &mut [f32]) {
        unreachable!("tiles are of x86-64")
    }

    /// By AMX: over whole images with their border, whose output gradients are zero, so that pairs are evenly spaced.
    #[cfg(target_arch = "x86_64")]
    fn add_tiles(&self, images: Range<usize>, input: &[f32], dy: &[f32], first: usize, partial: &mut [f32]) {
        let Conv { in_channels, kernel, stride, .. } = *self.conv;
        let (columns, side, count) = (self.columns, self.dy.side, images.len());
        // Pairs of a line and of an image; two output pixels are `2 * stride` input pixels.
        let (line, image) = (self.x.across() / 2, self.x.across() * self.x.across() / (2 * stride));
        let step = 2 * stride * in_channels;
        let pairs = (count * image).next_multiple_of(amx::ROWS);
        let rows = kernel * in_channels;
        with_scratch(pairs * columns, |gradient| {
            gradient.fill(0.0);
            let words_of_line = side / 2 * columns;
            with_scratch(words_of_line, |words| {
                for (at, n) in images.enumerate() {
                    for y in 0..side {
                        self.gradient_words(n..n + 1, y..y + 1, dy, first, words);
                        let start = at * image + y * line;
                        for (k, row) in gradient.chunks_exact_mut(pairs).enumerate() {
                            let row = &mut row[start..start + side / 2];
                            row.iter_mut().enumerate().for_each(|(x, word)| *word = words[x * columns + k]);
                        }
                    }
                }
            });
            for tap in 0..kernel {
                let outer = amx::Outer {
                    gradient,
                    gradient_stride: pairs,
                    channels: columns,
                    input: &input[self.origin() + tap * self.x.pitch()..],
                    input_stride: step,
                    pairs,
                    rows,
                    sums_stride: kernel * rows,
                };
                outer.add(&mut partial[tap * rows..]);
            }
        });
    }
}

/// Pixels that a tile may read after the last image.
const SLACK: usize = 160;

vectorised! {
    /// Some columns of a line of pixels, as f32.
    fn copy_columns<E>(maps: Maps, image: &[f32], y: usize, first: usize, columns: usize, words: &mut [f32]) {
        let line: &[E] = maps.line(image, y);
        for (words, pixel) in words.chunks_exact_mut(columns).zip(line.chunks_exact(maps.channels)) {
            words.iter_mut().zip(&pixel[first..]).for_each(|(word, value)| *word = value.get());
        }
    }
}

vectorised! {
    /// Words of two bf16 each.
    fn pair_up<E>(first: &[half::bf16], second: &[half::bf16], words: &mut [f32]) {
        for (word, (a, b)) in words.iter_mut().zip(first.iter().zip(second)) {
            *word = f32::from_bits(u32::from(b.to_bits()) << 16 | u32::from(a.to_bits()));
        }
    }
}

/// Adds the partial sums in the order of their runs, to (K, channel, tap).
fn reduce(
    conv: &Conv,
    split: &Split,
    order: Order,
    partials: &[f32],
    gradient: &mut [f32],
    accumulate: bool,
) {
    let taps = conv.kernel * conv.kernel;
    let (channels, filter) = (conv.in_channels, conv.in_channels * taps);
    gradient.par_chunks_mut(16 * filter).enumerate().for_each(|(k, gradient)| {
        let (group, column) = (16 * k / split.columns, 16 * k % split.columns);
        let mut add = |at: usize, k: usize, sum: f32| {
            let (tap, c) = (at / channels, at % channels);
            let slot = &mut gradient[k * filter + c * taps + tap];
            *slot = if accumulate { *slot + sum } else { sum };
        };
        let partial = |run: usize| &partials[(run * split.groups + group) * split.partial..][..split.partial];
        match order {
            Order::ColumnsLast => {
                for at in 0..filter {
                    let mut sums = [0.0f32; 16];
                    for run in 0..split.runs {
                        let values = &partial(run)[at * split.columns + column..][..16];
                        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                    }
                    sums.iter().enumerate().for_each(|(k, sum)| add(at, k, *sum));
                }
            }
            Order::ColumnsFirst => {
                let mut sums = vec![0.0f32; filter];
                for k in 0..16 {
                    sums.fill(0.0);
                    for run in 0..split.runs {
                        let values = &partial(run)[(column + k) * filter..][..filter];
                        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                    }
                    sums.iter().enumerate().for_each(|(at, sum)| add(at, k, *sum));
                }
            }
        }
    });
}
