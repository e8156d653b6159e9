//! What the convolution tests share: shapes, numbers, an f64 oracle with its error bounds, and the drivers to run on.
//!
//! The oracle takes the bf16 values that the kernels take, and beside each sum of products returns the sum of their absolute
//! values, from which the bound of every single element follows.

use std::rc::Rc;

use half::bf16;
use rayon::prelude::*;
use secateur::cuda::driver::host::{AsyncOrder, HostDriver, HostOptions, WarpOrder};
use secateur::cuda::driver::{Buffer, Driver};
use secateur::cuda::launch::conv::ConvShape;
use secateur::cuda::launch::conv::wgmma::{self, Block, Direction, Planned};
use secateur::engine::WgmmaOff;
use secateur::model::ResNet;
use secateur::philox::{Key, Purpose, symmetric};

pub use super::{SEED, drivers};

/// [`drivers`], and where `hopper` the emulator as a Hopper in every order that it knows. The first word of a name is its
/// family: its members must agree to the bit.
pub fn conv_drivers(hopper: bool) -> Vec<(&'static str, Rc<dyn Driver>)> {
    let mut all = drivers();
    if hopper && std::env::var_os("SECATEUR_TEST_DEVICE").is_none() {
        let orders = [
            ("hopper, copies late", WarpOrder::Forward, AsyncOrder::Late),
            ("hopper, copies early", WarpOrder::Forward, AsyncOrder::Early),
            ("hopper, copies late, last warp first", WarpOrder::Reversed, AsyncOrder::Late),
            ("hopper, copies early, last warp first", WarpOrder::Reversed, AsyncOrder::Early),
        ];
        all.extend(orders.map(|(name, warp_order, async_order)| {
            (
                name,
                HostDriver::with(HostOptions {
                    warp_order,
                    async_order,
                    hopper: true,
                    ..HostOptions::default()
                }),
            )
        }));
    }
    all
}

/// Those of them that run wgmma.
pub fn wgmma_drivers() -> Vec<(&'static str, Rc<dyn Driver>)> {
    conv_drivers(true).into_iter().filter(|(_, driver)| driver.has_wgmma()).collect()
}

/// What SECATEUR_WGMMA switches off: a session on a GPU looks for the fewest kernels without which these tests pass, so they launch
/// none of those.
pub fn switched_off() -> WgmmaOff {
    WgmmaOff::from_environment().unwrap()
}

/// The plan of a convolution in this block, where it fits and is not switched off.
pub fn in_block(shape: &ConvShape, direction: Direction, block: Block) -> Option<Planned> {
    let off = switched_off();
    let used = !off.has(direction.switch()) && !off.has(block.switch());
    if used { wgmma::plan(shape, direction, |any| any == block) } else { None }
}

/// This shape with as few images as are three works of every kind of block, planned for a grid of a single block or cluster: it goes
/// from work to work, and by its third the parities of its barriers have come again. No plans where wgmma does not serve it.
pub fn in_one_block(shape: ConvShape, direction: Direction) -> (ConvShape, Vec<Planned>) {
    let plans = |shape: &ConvShape| -> Vec<Planned> {
        let planned =
            |block: Block| Some(Planned { most_blocks: block.parts(), ..in_block(shape, direction, block)? });
        Block::ALL.into_iter().filter_map(planned).collect()
    };
    (1..)
        .map(|batch| ConvShape { batch, ..shape })
        .map(|shape| (shape, plans(&shape)))
        .find(|(_, plans)| plans.iter().all(|planned| planned.tiles >= 3))
        .expect("more images are more works")
}

/// Where every variant runs: the GPU, where the tests are to use it and it has wgmma, else the emulator.
pub fn hopper() -> Rc<dyn Driver> {
    super::hopper::add_extra_code();
    let gpu = drivers().into_iter().find(|(name, driver)| *name == "GPU" && driver.has_wgmma());
    gpu.map_or_else(HostDriver::hopper, |(_, driver)| driver)
}

/// What the members of each family gave; tells whether `actual` is what the first of its family gave.
pub struct Families<T>(Vec<(&'static str, T)>);

impl<T: PartialEq> Families<T> {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    pub fn agree(&mut self, name: &'static str, actual: T) -> bool {
        let family = name.split(',').next().unwrap_or(name);
        match self.0.iter().find(|(known, _)| *known == family) {
            Some((_, first)) => *first == actual,
            None => {
                self.0.push((family, actual));
                true
            }
        }
    }
}

/// Every different convolution of the network at this width.
pub fn shapes(width: usize, batch: usize) -> Vec<ConvShape> {
    let mut shapes: Vec<ConvShape> = Vec::new();
    for conv in ResNet::resnet18(width, 10).convs() {
        let shape = ConvShape::new(&conv, batch);
        if !shapes.contains(&shape) {
            shapes.push(shape);
        }
    }
    shapes
}

/// The shapes of every width, in batches that leave partial tiles, and one image alone.
pub fn all_shapes() -> Vec<ConvShape> {
    [(64, 3), (32, 1), (16, 3), (16, 1)].into_iter().flat_map(|(width, batch)| shapes(width, batch)).collect()
}

/// `len` numbers on [-scale, scale), different for each `stream`.
pub fn numbers(stream: u32, len: usize, scale: f32) -> Vec<f32> {
    let key = Key { seed: SEED, purpose: Purpose::Generation, epoch: 0, step: 0 };
    (0..len.div_ceil(4) as u32)
        .flat_map(|block| key.block(stream, block))
        .map(|word| symmetric(word, scale))
        .take(len)
        .collect()
}

/// The same as bf16.
pub fn halves(stream: u32, len: usize, scale: f32) -> Vec<bf16> {
    numbers(stream, len, scale).into_iter().map(bf16::from_f32).collect()
}

/// Weights of a size that keeps sums near 1.
pub fn weights(stream: u32, shape: &ConvShape) -> Vec<bf16> {
    halves(stream, shape.weight_len(), 3.0 / ((shape.taps() * shape.in_channels) as f32).sqrt())
}

/// Device memory with these values.
pub fn upload<T: bytemuck::Pod>(driver: &Rc<dyn Driver>, name: &'static str, values: &[T]) -> Buffer {
    Buffer::from_slice(driver, name, values).unwrap()
}

/// Device memory for `len` elements, all bits set: NaN in every float.
pub fn poisoned<T>(driver: &Rc<dyn Driver>, name: &'static str, len: usize) -> Buffer {
    let bytes = len * size_of::<T>();
    let buffer = Buffer::new(driver, name, bytes).unwrap();
    driver.fill(buffer.address(), 0xFF, bytes).unwrap();
    buffer
}

/// Sums of products, and sums of their absolute values.
#[derive(Clone)]
pub struct Sums {
    pub value: Vec<f64>,
    pub magnitude: Vec<f64>,
    /// Products in the longest sum.
    terms: usize,
}

impl Sums {
    /// How far an f32 sum of element `i` may be from the exact one: rounding errors of n additions walk about as the root of
    /// n; the factor covers tensor cores, which truncate inside a product of 16.
    pub fn error(&self, i: usize) -> f64 {
        (8.0 + (self.terms as f64).sqrt()) * 2f64.powi(-23) * self.magnitude[i]
    }

    /// One row of `row` elements for each of `rows`, in parallel.
    fn rows(
        rows: usize,
        row: usize,
        terms: usize,
        fill: impl Fn(usize, &mut [f64], &mut [f64]) + Sync,
    ) -> Self {
        let mut value = vec![0.0; rows * row];
        let mut magnitude = vec![0.0; rows * row];
        let pairs = value.par_chunks_mut(row).zip(magnitude.par_chunks_mut(row)).enumerate();
        pairs.for_each(|(index, (value, magnitude))| fill(index, value, magnitude));
        Self { value, magnitude, terms }
    }
}

/// `value += factor * row`, and the same of absolute values.
fn add_multiple(value: &mut [f64], magnitude: &mut [f64], factor: f64, row: &[f64]) {
    if factor != 0.0 {
        for ((value, magnitude), element) in value.iter_mut().zip(magnitude).zip(row) {
            let product = factor * element;
            *value += product;
            *magnitude += product.abs();
        }
    }
}

fn exact(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|v| v.to_f64()).collect()
}

/// Byte and bit of an element in a mask of images of this side and so many channels, in the order of fragments that
/// `kernels/conv/wgmma/mask.cuh` describes.
fn fragment_bit(side: usize, channels: usize, element: usize) -> (usize, usize) {
    let (pixel, c) = (element / channels, element % channels);
    let (image, row, column) = place(pixel, side);
    // A group is rows of one image, or whole images, and has its pixels row by row, in a row image by image.
    let (rows, images) = if side * side >= 256 { (256 / side, 1) } else { (side, 256 / (side * side)) };
    let group = image / images * (side / rows) + row / rows;
    let within = (row % rows * images + image % images) * side + column;
    let (sub_tile, j, t, e) = (within / 64, within % 64 / 8, within % 8 / 2, within % 2);
    let (warp, half, g) = (c % 64 / 16, c % 16 / 8, c % 8);
    let word = ((group * channels / 64 + c / 64) * 128 + 32 * warp + 4 * g + t) * 4 + sub_tile;
    let bit = 16 * e + 8 * half + j;
    (4 * word + bit / 8, bit % 8)
}

/// A plain mask in the order of fragments, with room for whole groups.
pub fn in_fragments(side: usize, channels: usize, plain: &[u8]) -> Vec<u8> {
    let groups = plain.len().div_ceil(256 * channels / 8);
    let mut fragments = vec![0; groups * 256 * channels / 8];
    for element in 0..8 * plain.len() {
        let (byte, bit) = fragment_bit(side, channels, element);
        fragments[byte] |= (plain[element / 8] >> (element % 8) & 1) << bit;
    }
    fragments
}

/// The first `len` elements of a mask in the order of fragments, plain.
pub fn in_plain(side: usize, channels: usize, len: usize, fragments: &[u8]) -> Vec<u8> {
    let bit_of = |element| {
        let (byte, bit) = fragment_bit(side, channels, element);
        (fragments[byte] >> bit & 1) << (element % 8)
    };
    (0..len / 8).map(|byte| (8 * byte..8 * byte + 8).map(bit_of).sum()).collect()
}

/// Image, row and column of a pixel.
fn place(pixel: usize, side: usize) -> (usize, usize, usize) {
    (pixel / (side * side), pixel / side % side, pixel % side)
}

/// Calls `visit(r, s, input pixel)` for every tap of output pixel `pixel` that reads inside the image.
fn taps(shape: &ConvShape, pixel: usize, mut visit: impl FnMut(usize, usize, usize)) {
    let (side, padding) = (shape.in_side, shape.kernel / 2);
    let (image, p, q) = place(pixel, shape.out_side());
    for r in 0..shape.kernel {
        for s in 0..shape.kernel {
            let (h, w) = (p * shape.stride + r, q * shape.stride + s);
            if (padding..side + padding).contains(&h) && (padding..side + padding).contains(&w) {
                visit(r, s, (image * side + h - padding) * side + w - padding);
            }
        }
    }
}

/// `y[n,p,q,k]`.
pub fn forward(shape: &ConvShape, input: &[bf16], weights: &[bf16]) -> Sums {
    let (x, w) = (exact(input), exact(weights));
    let (channels, reduction) = (shape.in_channels, shape.taps() * shape.in_channels);
    // Output channels innermost.
    let mut across = vec![0.0; w.len()];
    for (i, value) in w.iter().enumerate() {
        across[i % reduction * shape.out_channels + i / reduction] = *value;
    }
    Sums::rows(shape.output_rows(), shape.out_channels, reduction, |pixel, value, magnitude| {
        taps(shape, pixel, |r, s, from| {
            for c in 0..channels {
                let row = ((r * shape.kernel + s) * channels + c) * shape.out_channels;
                add_multiple(
                    value,
                    magnitude,
                    x[from * channels + c],
                    &across[row..row + shape.out_channels],
                );
            }
        });
    })
}

/// `dx[n,h,w,c]`, of every input pixel.
pub fn input_gradient(shape: &ConvShape, output_gradient: &[bf16], weights: &[bf16]) -> Sums {
    let (dy, w) = (exact(output_gradient), exact(weights));
    let channels = shape.in_channels;
    // The output pixels and taps that read each input pixel.
    let mut readers = vec![Vec::new(); shape.input_rows()];
    for pixel in 0..shape.output_rows() {
        taps(shape, pixel, |r, s, from| readers[from].push((pixel, r * shape.kernel + s)));
    }
    let terms = shape.taps() * shape.out_channels;
    Sums::rows(shape.input_rows(), channels, terms, |pixel, value, magnitude| {
        for (from, tap) in &readers[pixel] {
            for k in 0..shape.out_channels {
                let row = (k * shape.taps() + tap) * channels;
                add_multiple(value, magnitude, dy[from * shape.out_channels + k], &w[row..row + channels]);
            }
        }
    })
}

/// `dw[k,r,s,c]`.
pub fn weight_gradient(shape: &ConvShape, input: &[bf16], output_gradient: &[bf16]) -> Sums {
    let (x, dy) = (exact(input), exact(output_gradient));
    let channels = shape.in_channels;
    let columns = shape.taps() * channels;
    Sums::rows(shape.out_channels, columns, shape.output_rows(), |k, value, magnitude| {
        for pixel in 0..shape.output_rows() {
            let factor = dy[pixel * shape.out_channels + k];
            taps(shape, pixel, |r, s, from| {
                let at = (r * shape.kernel + s) * channels;
                let (value, magnitude) = (&mut value[at..at + channels], &mut magnitude[at..at + channels]);
                add_multiple(value, magnitude, factor, &x[from * channels..(from + 1) * channels]);
            });
        }
    })
}

/// Half a unit in the last place of a bf16 of this size.
pub fn half_ulp(value: f64) -> f64 {
    value.abs() * 2f64.powi(-8)
}

/// Every element within its bound, and the relative L2 error of the whole within `whole`.
pub fn check(what: &str, actual: &[f64], expected: &[f64], bound: impl Fn(usize) -> f64, whole: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let (mut error, mut norm) = (0.0, 0.0);
    for (i, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let (difference, bound) = ((actual - expected).abs(), bound(i));
        assert!(
            difference <= bound,
            "{what}, seed {SEED}: element {i} is {actual}, expected {expected} within {bound:e}"
        );
        error += difference * difference;
        norm += expected * expected;
    }
    let relative = (error / norm.max(f64::MIN_POSITIVE)).sqrt();
    assert!(
        relative <= whole,
        "{what}, seed {SEED}: relative L2 error {relative:e}, expected at most {whole:e}"
    );
}

pub fn from_halves(values: &[bf16]) -> Vec<f64> {
    exact(values)
}

pub fn from_floats(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// bf16 rounds by 2^-8 at most and by a third of that in the mean square; the f32 sums add next to nothing.
pub const WHOLE_BF16: f64 = 0.0025;
/// f32 sums of up to about 1,000 products against exact ones.
pub const WHOLE_F32: f64 = 2e-6;
/// The same where one accumulator takes in `products` of them. Tensor cores round towards zero, once for every 16: half of a last
/// place on average, all the same way.
pub fn whole_f32(products: usize) -> f64 {
    WHOLE_F32 + products as f64 / 16.0 * 2f64.powi(-24)
}
