//! Convolutions as sums over runs of neighbouring words: packed weights, forward pass and input gradient.
//!
//! Sums of a few lines and a block of channels go through an [`Epilogue`] while they are in cache. The input gradient is the same loop
//! over output gradients with mirrored weights; at a stride of two each of the four parities of input pixels has taps of its own, so
//! nothing is multiplied by zero. The bits of an image depend neither on the batch nor on the number of threads.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::epilogue::Epilogue;
use super::maps::{BORDER, Maps};
use super::memory::{Aligned, with_scratch};
use super::numbers::{Format, Numbers, high_and_low, pair};
use super::tiles::{LANES, Phase, Pixel, Products, Run};
use super::vectorised::vectorised;
use crate::model::Conv;

/// Operations of all convolutions of this process.
static FLOPS: AtomicU64 = AtomicU64::new(0);

/// Floating-point operations of all convolutions of this process, a multiply-add counted as two.
pub fn flops_so_far() -> u64 {
    FLOPS.load(Ordering::Relaxed)
}

/// Counts one pass of a convolution over `batch` images.
pub fn count_flops(conv: &Conv, batch: usize) {
    FLOPS.fetch_add(2 * (batch * conv.multiply_adds()) as u64, Ordering::Relaxed);
}

/// A convolution with its weights laid out for both directions.
#[derive(Clone)]
pub struct PackedConv {
    conv: Conv,
    /// Of the input where it is no image, and of the output.
    input: Maps,
    output: Maps,
    forward: Direction,
    backward: Direction,
}

impl PackedConv {
    /// Weights are zero until [`PackedConv::pack`].
    pub fn new(conv: &Conv, numbers: Numbers) -> Self {
        let backward =
            if conv.in_channels < LEAST { patches(conv, numbers) } else { backward(conv, numbers) };
        let [input, output] = [Maps::input, Maps::output].map(|of| of(conv, numbers.format));
        Self { conv: conv.clone(), input, output, forward: forward(conv, numbers), backward }
    }

    pub fn output(&self) -> Maps {
        self.output
    }

    pub fn input(&self) -> Maps {
        self.input
    }

    /// Packs `weights` (K, C, R, S), each output channel times its `scale`, where there is one.
    pub fn pack(&mut self, weights: &[f32], scale: Option<&[f32]>) {
        let Conv { in_channels, kernel, .. } = self.conv;
        let taps = kernel * kernel;
        let (numbers, filter) = (self.forward.numbers, in_channels * taps);
        with_scratch(weights.len(), |rounded| {
            let filters = rounded.par_chunks_exact_mut(filter).zip(weights.par_chunks_exact(filter));
            filters.enumerate().for_each(|(k, (rounded, weights))| {
                scaled(numbers, weights, scale.map_or(1.0, |scale| scale[k]), rounded);
            });
            self.forward.pack(kernel, rounded, (taps, filter));
            if in_channels >= LEAST {
                return self.backward.pack(kernel, rounded, (filter, taps));
            }
            // (line, column, channel) of a patch as outputs, zeros after them to the end of its last vector.
            let (outputs, filters) = (self.backward.outputs, self.conv.out_channels);
            with_scratch(outputs * filters, |patches| {
                patches.fill(0.0);
                for (at, patch) in patches.chunks_exact_mut(filters).take(filter).enumerate() {
                    let (tap, c) = (at / in_channels, at % in_channels);
                    patch
                        .iter_mut()
                        .zip(rounded.chunks_exact(filter))
                        .for_each(|(w, f)| *w = f[c * taps + tap]);
                }
                self.backward.pack(1, patches, (1, filters));
            });
        });
    }

    /// `out = epilogue(conv(x))` of `images` images on this thread; `x` and `out` are [`Maps`], or `x` whole images.
    pub fn forward(&self, images: usize, x: &[f32], out: &mut [f32], epilogue: &Epilogue) {
        count_flops(&self.conv, images);
        if self.conv.in_channels >= LEAST {
            return self.write(&self.forward, (images, self.input), x, (self.output, out), epilogue);
        }
        let framed = image_maps(&self.conv);
        with_scratch(framed.words(images), |input| {
            input.fill(0.0);
            for (input, x) in
                input.chunks_exact_mut(framed.image()).zip(x.chunks_exact(self.conv.input_len()))
            {
                let line = framed.side * framed.channels;
                for (y, x) in x.chunks_exact(line).enumerate() {
                    self.forward.operands.copy(x, framed.line_mut(input, y));
                }
            }
            self.write(&self.forward, (images, framed), input, (self.output, out), epilogue);
        });
    }

    /// `dx = epilogue(input gradient of dy)`, all of them [`Maps`].
    pub fn input_gradient(&self, images: usize, dy: &[f32], dx: &mut [f32], epilogue: &Epilogue) {
        count_flops(&self.conv, images);
        self.write(&self.backward, (images, self.output), dy, (self.input, dx), epilogue);
    }

    /// Sums of a direction through an epilogue into [`Maps`].
    fn write(
        &self,
        direction: &Direction,
        (images, input): (usize, Maps),
        x: &[f32],
        (maps, out): (Maps, &mut [f32]),
        epilogue: &Epilogue,
    ) {
        direction.run(images, input.image(), x, |n, channel, line, sums| {
            let at = n * maps.image();
            epilogue.write(direction.numbers, maps, line, channel, sums, at, &mut out[at..][..maps.image()]);
        });
    }

    /// Gradient of the images, of the first convolution: `dx` are whole images.
    ///
    /// An image has fewer channels than a vector lanes: these are gradients of whole patches, added where the patches came from.
    pub fn image_gradient(&self, images: usize, dy: &[f32], dx: &mut [f32]) {
        count_flops(&self.conv, images);
        let (side, channels, row) = (self.conv.in_side, self.conv.in_channels, self.backward.outputs);
        let line = self.conv.kernel * channels;
        for (n, dx) in dx.chunks_exact_mut(self.conv.input_len()).take(images).enumerate() {
            with_scratch(side * side * row, |patches| {
                self.backward.run(1, 0, &dy[n * self.output.image()..], |_, channel, first, sums| {
                    let pixels = patches[first * side * row..].chunks_exact_mut(row);
                    for (pixel, sums) in
                        pixels.zip(sums.values.chunks_exact(sums.block)).take(sums.lines * side)
                    {
                        pixel[channel..][..sums.len()].copy_from_slice(sums);
                    }
                });
                dx.fill(0.0);
                // A line of a patch: three pixels that are neighbours in memory, or two at a border.
                for (pixel, patch) in patches.chunks_exact(row).enumerate() {
                    let (y, x) = (pixel / side, pixel % side);
                    let skip = if x == 0 { channels } else { 0 };
                    let keep = if x + 1 == side { line - channels } else { line };
                    for tap in usize::from(y == 0)..self.conv.kernel.min(side + 1 - y) {
                        let start = ((y + tap - 1) * side + x) * channels + skip - channels;
                        let part = &patch[tap * line..][skip..keep];
                        dx[start..][..part.len()].iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
                    }
                }
            });
        }
    }
}

/// Input channels from which on they are summed in vectors and, in bf16, in pairs; an image has fewer.
pub const LEAST: usize = LANES;

/// Words of an image in a border, as the first convolution reads it: one a channel.
fn image_maps(conv: &Conv) -> Maps {
    Maps::input(conv, Format::F32)
}

/// One direction of a convolution, from images of `inputs` channels to images of `outputs`.
#[derive(Clone)]
struct Direction {
    numbers: Numbers,
    operands: Operands,
    inputs: usize,
    outputs: usize,
    /// (line, column) of every tap, as they are packed.
    taps: Vec<(usize, usize)>,
    /// Channels of a block of packed weights.
    block: usize,
    /// Blocks of (tap, input word) x output channel.
    weights: Aligned,
    chunk: Chunk,
    /// Of the first chunk.
    phases: Vec<Phase>,
}

/// The output lines that are summed at a time.
#[derive(Clone, Copy)]
struct Chunk {
    lines: usize,
    count: usize,
    /// Words of input from the image's beginning to the first chunk, and from one to the next.
    first: usize,
    step: usize,
    /// Sums of a line: of its pixels, and of those between two lines where tiles run over them.
    pitch: usize,
    /// Pixels of an output line.
    side: usize,
}

/// Sums of a chunk: `block` channels of a pixel, `pitch` pixels of a line.
pub struct Sums<'a> {
    pub values: &'a [f32],
    pub block: usize,
    pub pitch: usize,
    pub lines: usize,
}

/// Sums of a chunk at most, unless it has the fewest lines possible: they stay in the first cache with what they are made of.
const CHUNK: usize = 4096;

/// Lines of `side` pixels, all of them a chunk's or of one parity of it.
struct Lines {
    count: usize,
    across: usize,
    /// Words from a line and a pixel to the next: of the input, and of the sums.
    input: (usize, usize),
    output: (usize, usize),
    /// The first sum.
    start: usize,
}

impl Lines {
    /// The pixels, or every first of `rows` neighbours; over the ends of lines where `over`.
    fn phase(&self, runs: Vec<Run>, rows: usize, over: bool, block: usize) -> Phase {
        let Self { count, across, input, output, start } = *self;
        let pixel = |y: usize, x: usize| Pixel {
            input: y * input.0 + x * input.1,
            output: start + y * output.0 + x * output.1,
        };
        let steps = (input.1, output.1);
        if over {
            let positions = (count - 1) * (input.0 / input.1) + across;
            let pixels = (0..positions).step_by(rows).map(|x| pixel(0, x)).collect();
            return Phase::new(runs, pixels, rows, steps, block);
        }
        let rows = rows.min(across);
        let line = |y: usize| (0..across).step_by(rows).map(move |x| pixel(y, x));
        Phase::new(runs, (0..count).flat_map(line).collect(), rows, steps, block)
    }
}

impl Chunk {
    /// Of outputs of `side` lines in `parities` of each axis, from inputs of which a line has `pitch` words.
    fn new(
        products: &Products,
        side: usize,
        block: usize,
        parities: usize,
        first: usize,
        line: usize,
    ) -> Self {
        let fits = |lines: &usize| {
            side.is_multiple_of(*lines)
                && lines.is_multiple_of(parities)
                && (lines * side * block <= CHUNK || *lines == parities)
        };
        let lines = (parities..=side).rev().find(fits).unwrap_or(side);
        // Lines shorter than a tile are summed with the border between them.
        let over = parities == 1 && side < products.rows;
        let pitch = if over { side + 2 * BORDER } else { side };
        Self { lines, count: side / lines, first, step: lines / parities * line, pitch, side }
    }

    /// Words of the sums; tiles may go on after the last line.
    fn workspace(&self, rows: usize, block: usize) -> usize {
        (self.lines * self.pitch + rows) * block
    }
}

fn forward(conv: &Conv, numbers: Numbers) -> Direction {
    let Conv { in_channels, out_channels, kernel, stride, .. } = *conv;
    let operands = Operands::new(numbers.format, in_channels);
    let maps = match operands {
        Operands::Pairs => Maps::input(conv, Format::Bf16),
        _ => image_maps(conv),
    };
    let products = numbers.products();
    let (pitch, words, block) = (maps.pitch(), maps.pixel(), products.block(out_channels));
    let first = (BORDER - conv.padding()) * (pitch + words);
    let chunk = Chunk::new(products, conv.out_side(), block, 1, first, stride * pitch);
    let line = kernel * words;
    let runs = (0..kernel).map(|tap| Run { input: tap * pitch, row: tap * line, words: line }).collect();
    let lines = Lines {
        count: chunk.lines,
        across: chunk.side,
        input: (stride * pitch, stride * words),
        output: (chunk.pitch * block, block),
        start: 0,
    };
    // At a stride, what lies between two lines is more than a border.
    let over = stride == 1 && chunk.pitch != chunk.side;
    let taps = (0..kernel * kernel).map(|tap| (tap / kernel, tap % kernel)).collect();
    let phases = vec![lines.phase(runs, products.rows, over, block)];
    Direction::new(numbers, operands, (in_channels, out_channels), taps, chunk, phases)
}

fn backward(conv: &Conv, numbers: Numbers) -> Direction {
    let Conv { in_channels, out_channels, stride, in_side, .. } = *conv;
    let maps = Maps::output(conv, numbers.format);
    let products = numbers.products();
    let (pitch, words, block) = (maps.pitch(), maps.pixel(), products.block(in_channels));
    let first = (BORDER - conv.padding()) * (pitch + words);
    let chunk = Chunk::new(products, in_side, block, stride, first, pitch);
    let mut taps = Vec::new();
    let mut phases = Vec::new();
    for parity in (0..stride * stride).map(|phase| (phase / stride, phase % stride)) {
        let (rows, columns) = (mirrored(conv, parity.0), mirrored(conv, parity.1));
        let mut runs = Vec::new();
        if let Some(&(_, first)) = columns.first() {
            for &(line, offset) in &rows {
                runs.push(Run {
                    input: offset * pitch + first * words,
                    row: taps.len() * words,
                    words: columns.len() * words,
                });
                taps.extend(columns.iter().map(|&(column, _)| (line, column)));
            }
        }
        let lines = Lines {
            count: chunk.lines / stride,
            across: in_side / stride,
            input: (pitch, words),
            output: (stride * chunk.pitch * block, stride * block),
            start: (parity.0 * chunk.pitch + parity.1) * block,
        };
        phases.push(lines.phase(runs, products.rows, chunk.pitch != chunk.side, block));
    }
    let operands = Operands::new(numbers.format, out_channels);
    Direction::new(numbers, operands, (out_channels, in_channels), taps, chunk, phases)
}

/// Along one axis: the taps that reach input positions of this parity, each with its output's offset from the first that one
/// reaches at parity 0, offsets ascending.
fn mirrored(conv: &Conv, parity: usize) -> Vec<(usize, usize)> {
    // Output o sees input o * stride + tap - padding.
    let above = |tap: usize| parity + conv.padding() + conv.stride * conv.padding() - tap;
    (0..conv.kernel)
        .rev()
        .filter(|&tap| above(tap).is_multiple_of(conv.stride))
        .map(|tap| (tap, above(tap) / conv.stride))
        .collect()
}

/// From the gradient of a pixel to that of its patch, (line, column, channel).
fn patches(conv: &Conv, numbers: Numbers) -> Direction {
    let (maps, products) = (Maps::output(conv, numbers.format), numbers.products());
    // Rows of whole blocks; what is beyond the patch stays zero.
    let len = (conv.kernel * conv.kernel * conv.in_channels).next_multiple_of(LEAST);
    let (pitch, words, block) = (maps.pitch(), maps.pixel(), products.block(len));
    let chunk = Chunk::new(products, maps.side, block, 1, BORDER * (pitch + words), pitch);
    let lines = Lines {
        count: chunk.lines,
        across: chunk.side,
        input: (pitch, words),
        output: (chunk.pitch * block, block),
        start: 0,
    };
    let runs = vec![Run { input: 0, row: 0, words }];
    let phases = vec![lines.phase(runs, products.rows, false, block)];
    let operands = Operands::new(numbers.format, conv.out_channels);
    Direction::new(numbers, operands, (conv.out_channels, len), vec![(0, 0)], chunk, phases)
}

impl Direction {
    fn new(
        numbers: Numbers,
        operands: Operands,
        (inputs, outputs): (usize, usize),
        taps: Vec<(usize, usize)>,
        chunk: Chunk,
        phases: Vec<Phase>,
    ) -> Self {
        let weights = Aligned::zeros(taps.len() * operands.words(inputs) * outputs);
        let block = numbers.products().block(outputs);
        Self { numbers, operands, inputs, outputs, taps, block, weights, chunk, phases }
    }

    /// Rows of a block of weights.
    fn rows(&self) -> usize {
        self.taps.len() * self.operands.words(self.inputs)
    }

    /// Packs `weights`, numbers of the format, of a kernel of `kernel` lines: its taps are neighbours, those of the next input and of the
    /// next output channel `steps` further.
    fn pack(&mut self, kernel: usize, weights: &[f32], (input, output): (usize, usize)) {
        let (words, block, rows) = (self.operands.words(self.inputs), self.block, self.rows());
        let taps: Vec<usize> = self.taps.iter().map(|(line, column)| line * kernel + column).collect();
        let operands = self.operands;
        self.weights.par_chunks_exact_mut(rows * block).enumerate().for_each(|(at, packed)| {
            for word in 0..words {
                let channels = operands.channels(word);
                for k in 0..block {
                    let filter = &weights[(at * block + k) * output..];
                    let [first, second] = channels.map(|c| &filter[c * input..][..kernel * kernel]);
                    let column = packed[word * block + k..].iter_mut().step_by(words * block);
                    for (slot, &tap) in column.zip(&taps) {
                        *slot = operands.word(first[tap], second[tap]);
                    }
                }
            }
        });
    }

    /// `sink(image, first channel, first line, sums)` of every chunk of `images` that are `image` words apart. A block of weights meets
    /// every image before the next block is read.
    fn run(&self, images: usize, image: usize, x: &[f32], mut sink: impl FnMut(usize, usize, usize, &Sums)) {
        let (Chunk { lines, count, first, step, pitch, .. }, block) = (self.chunk, self.block);
        let products = self.numbers.products();
        with_scratch(self.chunk.workspace(products.rows, block), |values| {
            for (at, weights) in self.weights.chunks_exact(self.rows() * block).enumerate() {
                for n in 0..images {
                    for chunk in 0..count {
                        let input = &x[n * image + first + chunk * step..];
                        for phase in &self.phases {
                            products.tile(block, input, phase, weights, values);
                        }
                        sink(n, at * block, chunk * lines, &Sums { values, block, pitch, lines });
                    }
                }
            }
        });
    }
}

/// What the words of an input are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operands {
    /// One channel.
    Singles,
    /// Two neighbouring channels in bf16.
    Pairs,
    /// The nearest bf16 of a channel and what it lacks: of an image, whose f32 values matter.
    HighAndLow,
}

impl Operands {
    fn new(format: Format, channels: usize) -> Self {
        match format {
            Format::F32 => Self::Singles,
            Format::Bf16 if channels < LEAST => Self::HighAndLow,
            Format::Bf16 => Self::Pairs,
        }
    }

    /// Words of a pixel.
    fn words(self, channels: usize) -> usize {
        match self {
            Self::Singles | Self::HighAndLow => channels,
            Self::Pairs => channels / 2,
        }
    }

    /// The channels whose weights a word meets.
    fn channels(self, word: usize) -> [usize; 2] {
        match self {
            Self::Singles | Self::HighAndLow => [word, word],
            Self::Pairs => [2 * word, 2 * word + 1],
        }
    }

    /// Their weights, which are numbers of the format, as a word.
    fn word(self, first: f32, second: f32) -> f32 {
        match self {
            Self::Singles => first,
            Self::Pairs | Self::HighAndLow => pair(first, second),
        }
    }

    /// Makes words of values, which are numbers of the format unless they are an image's.
    fn copy(self, values: &[f32], words: &mut [f32]) {
        match self {
            Self::Singles => words.copy_from_slice(values),
            Self::Pairs => {
                for (word, values) in words.iter_mut().zip(values.as_chunks::<2>().0) {
                    *word = pair(values[0], values[1]);
                }
            }
            Self::HighAndLow => {
                words.iter_mut().zip(values).for_each(|(word, value)| *word = high_and_low(*value));
            }
        }
    }
}

vectorised! {
    /// The numbers nearest to weights times a factor.
    fn scaled<E>(weights: &[f32], factor: f32, out: &mut [f32]) {
        for (out, weight) in out.iter_mut().zip(weights) {
            *out = E::nearest(weight * factor).get();
        }
    }
}
