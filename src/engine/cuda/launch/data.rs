//! Batches from the resident data set: `kernels/data/`. Checked by `tests/kernel_data.rs`.

use super::{Cost, F32, Philox, U32, run};
use crate::engine::cuda::driver::{Address, Driver, Kernel};
use crate::engine::{Augment, Padding, Result};
use crate::model::layers::{IMAGE_LEN, IMAGE_SIDE};
use crate::philox::{Key, Purpose};

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct GatherParams {
    set: Address,
    set_labels: Address,
    samples: Address,
    images: Address,
    labels: Address,
    random: Philox,
    count: u32,
    augment: u32,
    reflect: u32,
    unused: u32,
}

/// A data set of `count` images, and where `batch` of them go.
#[derive(Clone, Copy, Debug)]
pub struct Gather {
    /// u8, count x 3 x 32 x 32.
    pub set: Address,
    /// u32, count.
    pub set_labels: Address,
    pub count: usize,
    /// u32, batch.
    pub samples: Address,
    /// f32, batch x 32 x 32 x 3.
    pub images: Address,
    /// u32, batch.
    pub labels: Address,
    pub batch: usize,
}

/// Writes (augmented) images and labels. A sample that the set does not have becomes NaN with label `u32::MAX`.
pub fn gather_images(driver: &dyn Driver, augment: Option<Augment>, gather: &Gather) -> Result<()> {
    let drawn = augment.unwrap_or(Augment { seed: 0, epoch: 0, padding: Padding::Zero });
    let key = Key { seed: drawn.seed, purpose: Purpose::Augment, epoch: drawn.epoch, step: 0 };
    let params = GatherParams {
        set: gather.set,
        set_labels: gather.set_labels,
        samples: gather.samples,
        images: gather.images,
        labels: gather.labels,
        random: key.into(),
        count: gather.count as u32,
        augment: augment.is_some().into(),
        reflect: (drawn.padding == Padding::Reflect).into(),
        unused: 0,
    };
    let name = "gather_images";
    let blocks = (IMAGE_SIDE * IMAGE_SIDE) as u32 / Kernel::named(name)?.threads();
    let elements = gather.batch * IMAGE_LEN;
    let cost = Cost::new(elements, elements * (1 + F32) + 3 * gather.batch * U32);
    run(driver, name, [blocks, gather.batch as u32, 1], &params, cost)
}
