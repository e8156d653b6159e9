//! The optimizer step: `kernels/optimizer/`. Checked by `tests/kernels/kernel_optimizer.rs`.

use super::{BF16, Cost, F32, run_flat};
use crate::cuda::driver::{Address, Driver};
use crate::cuda::layout::{Layout, STEM_CHANNELS};
use crate::engine::Result;

/// Where the parts of the f32 arena end, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct ArenaExtents {
    pub stem: u32,
    pub convolutions: u32,
    pub trainable: u32,
    pub total: u32,
}

impl ArenaExtents {
    /// Elements of the bf16 arena.
    fn copies(&self) -> usize {
        self.stem as usize / 3 * STEM_CHANNELS + (self.convolutions - self.stem) as usize
    }
}

impl From<&Layout> for ArenaExtents {
    fn from(layout: &Layout) -> Self {
        Self {
            stem: layout.convs[0].conv.weight_len() as u32,
            convolutions: layout.convs[0].bn_weight as u32,
            trainable: layout.trainable as u32,
            total: layout.total as u32,
        }
    }
}

/// Elements to allocate for an arena of `len`: the kernels read and write whole vectors of four.
pub fn arena_room(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// All arenas but `copies` are f32 with room for [`arena_room`] elements.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct SgdParams {
    pub weights: Address,
    /// Trainable elements.
    pub velocity: Address,
    /// Trainable elements.
    pub gradients: Address,
    /// Null where none is kept.
    pub average: Address,
    /// The bf16 arena of the train pass.
    pub copies: Address,
    pub extents: ArenaExtents,
    pub learning_rate: f32,
    pub momentum: f32,
    pub weight_decay: f32,
    pub average_decay: f32,
}

/// One step on all parameters, their bf16 copies and the moving average.
pub fn sgd_step(driver: &dyn Driver, params: &SgdParams) -> Result<()> {
    let (trainable, total) = (params.extents.trainable as usize, params.extents.total as usize);
    // Weights and velocity are read and written, the gradient is read; the average, of all, is read and written.
    let mut cost = Cost::new(6 * trainable, 5 * trainable * F32 + params.extents.copies() * BF16);
    if params.average != Address::NULL {
        cost += Cost::new(3 * total, (2 * total + (total - trainable)) * F32);
    }
    run_flat(driver, "sgd_step", params.extents.total.div_ceil(4), params, cost)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct CopiesParams {
    weights: Address,
    copies: Address,
    extents: ArenaExtents,
}

/// The bf16 copies alone, after `weights` were loaded.
pub fn weights_to_bf16(
    driver: &dyn Driver,
    extents: ArenaExtents,
    weights: Address,
    copies: Address,
) -> Result<()> {
    let params = CopiesParams { weights, copies, extents };
    let cost = Cost::new(0, extents.convolutions as usize * F32 + extents.copies() * BF16);
    run_flat(driver, "weights_to_bf16", extents.convolutions.div_ceil(4), &params, cost)
}
