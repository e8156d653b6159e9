//! Batches from the resident data set: gather, crop and flip, from u8 to f32.

use rayon::prelude::*;

pub use crate::data::Padding;

use super::{NO_CLASS, Op};
use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::cuda::driver::{Address, Driver, Kernel};
use crate::cuda::launch::{Cost, F32, Philox, U32, run};
use crate::engine::{Engine, Operands, Result, Tensor};
use crate::model::layers::{IMAGE_LEN, IMAGE_SIDE};
use crate::philox::{Key, Purpose};

/// A labelled image set, resident on the device.
#[derive(Clone, Debug)]
pub struct ImageSet {
    /// `count` x 3 x 32 x 32 bytes, the planar layout of the CIFAR files.
    pub images: Tensor<u8>,
    /// `count` class indices.
    pub labels: Tensor<u32>,
    pub count: usize,
}

impl ImageSet {
    /// Makes a set resident: `images` is `labels.len()` x 3 x 32 x 32 bytes.
    pub fn upload(engine: &Engine, images: &[u8], labels: &[u32]) -> Result<Self> {
        let set = Self::alloc(engine, labels)?;
        engine.write(&set.images, images)?;
        Ok(set)
    }

    /// Memory for images with these labels.
    pub fn alloc(engine: &Engine, labels: &[u32]) -> Result<Self> {
        Ok(Self {
            images: engine.alloc("data set images", labels.len() * IMAGE_LEN)?,
            labels: engine.upload("data set labels", labels)?,
            count: labels.len(),
        })
    }

    /// Writes images from number `first` on.
    pub fn write(&self, engine: &Engine, first: usize, images: &[u8]) -> Result<()> {
        let start = first * IMAGE_LEN;
        engine.write(&self.images.slice(start..start + images.len()), images)
    }
}

/// Random crop (32 of 40, padding 4) and horizontal flip, drawn by `Purpose::Augment` for each sample.
///
/// Word 0 of the sample's first block picks the row offset `word % 9`, word 1 the column offset, bit 0 of word 2
/// the flip: `x[h][w] = image[h + row - 4][w' + column - 4]`, `w' = flip ? 31 - w : w`, outside what the padding says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Augment {
    pub seed: u64,
    pub epoch: u32,
    pub padding: Padding,
}

/// Writes the (augmented) images and labels of `samples`. A sample that the set does not have becomes NaN with label
/// [`NO_CLASS`].
#[derive(Clone, Copy, Debug)]
pub struct GatherImages<'a> {
    pub set: &'a ImageSet,
    pub samples: &'a Tensor<u32>,
    pub augment: Option<Augment>,
    /// `samples x 32 x 32 x 3`.
    pub images: &'a Tensor<f32>,
    pub labels: &'a Tensor<u32>,
}

impl Op for GatherImages<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        let (set, batch) = (self.set, self.samples.len());
        operands.reads(&set.images, set.count * IMAGE_LEN)?;
        operands.reads(&set.labels, set.count)?;
        operands.reads(self.samples, batch)?;
        operands.writes(self.images, batch * IMAGE_LEN)?;
        operands.writes(self.labels, batch)
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (set, set_labels) = (cpu.input(&self.set.images)?, cpu.input(&self.set.labels)?);
        let samples = cpu.input(self.samples)?;
        let (mut images, mut labels) = (cpu.output(self.images)?, cpu.output(self.labels)?);
        for (label, &sample) in labels.iter_mut().zip(&*samples) {
            *label = set_labels.get(sample as usize).copied().unwrap_or(NO_CLASS);
        }
        let (set, augment): (&[u8], _) = (&set, self.augment);
        images.par_chunks_exact_mut(IMAGE_LEN).zip(&samples[..]).for_each(|(out, &sample)| {
            match set.get(sample as usize * IMAGE_LEN..(sample as usize + 1) * IMAGE_LEN) {
                Some(image) => crop(image, sample, augment, out),
                None => out.fill(f32::NAN),
            }
        });
        Ok(())
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let gather = Gather {
            set: cuda.address(&self.set.images)?,
            set_labels: cuda.address(&self.set.labels)?,
            samples: cuda.address(self.samples)?,
            images: cuda.address(self.images)?,
            labels: cuda.address(self.labels)?,
        };
        gather_images(cuda.driver(), self.augment, gather, [self.set.count, self.samples.len()])
    }
}

/// Writes an image, planar u8 to interleaved f32 in [0, 1].
fn crop(image: &[u8], sample: u32, augment: Option<Augment>, out: &mut [f32]) {
    let (row, column, flip) = augment.map_or((4, 4, false), |augment| draw(augment, sample));
    let padding = augment.map_or(Padding::Zero, |augment| augment.padding);
    for (h, line) in out.chunks_exact_mut(IMAGE_SIDE * 3).enumerate() {
        for (w, pixel) in line.chunks_exact_mut(3).enumerate() {
            let w = if flip { IMAGE_SIDE - 1 - w } else { w };
            let source = source(padding, h + row).zip(source(padding, w + column));
            for (c, value) in pixel.iter_mut().enumerate() {
                *value = source
                    .map_or(0.0, |(y, x)| f32::from(image[(c * IMAGE_SIDE + y) * IMAGE_SIDE + x]) / 255.0);
            }
        }
    }
}

/// The row (or column) of the image that lies at `padded` of the image padded by four; `None` for black.
fn source(padding: Padding, padded: usize) -> Option<usize> {
    let (first, last) = (4, 3 + IMAGE_SIDE);
    match padding {
        _ if (first..=last).contains(&padded) => Some(padded - first),
        Padding::Zero => None,
        Padding::Reflect if padded < first => Some(first - padded),
        Padding::Reflect => Some(2 * last - padded - first),
    }
}

/// Row offset, column offset and flip of a sample.
fn draw(augment: Augment, sample: u32) -> (usize, usize, bool) {
    let key = Key { seed: augment.seed, purpose: Purpose::Augment, epoch: augment.epoch, step: 0 };
    let words = key.block(sample, 0);
    ((words[0] % 9) as usize, (words[1] % 9) as usize, words[2] & 1 == 1)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct GatherParams {
    gather: Gather,
    random: Philox,
    count: u32,
    augment: u32,
    reflect: u32,
    unused: u32,
}

/// A data set of `count` images, and where `batch` of them go.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Gather {
    /// u8, count x 3 x 32 x 32.
    pub set: Address,
    /// u32, count.
    pub set_labels: Address,
    /// u32, batch.
    pub samples: Address,
    /// f32, batch x 32 x 32 x 3.
    pub images: Address,
    /// u32, batch.
    pub labels: Address,
}

/// Writes (augmented) images and labels. A sample that the set does not have becomes NaN with label `u32::MAX`.
pub fn gather_images(
    driver: &dyn Driver,
    augment: Option<Augment>,
    gather: Gather,
    [count, batch]: [usize; 2],
) -> Result<()> {
    let drawn = augment.unwrap_or(Augment { seed: 0, epoch: 0, padding: Padding::Zero });
    let key = Key { seed: drawn.seed, purpose: Purpose::Augment, epoch: drawn.epoch, step: 0 };
    let params = GatherParams {
        gather,
        random: key.into(),
        count: count as u32,
        augment: augment.is_some().into(),
        reflect: (drawn.padding == Padding::Reflect).into(),
        unused: 0,
    };
    let name = "gather_images";
    let blocks = (IMAGE_SIDE * IMAGE_SIDE) as u32 / Kernel::named(name)?.threads();
    let elements = batch * IMAGE_LEN;
    let cost = Cost::new(elements, elements * (1 + F32) + 3 * batch * U32);
    run(driver, name, [blocks, batch as u32, 1], &params, cost)
}
