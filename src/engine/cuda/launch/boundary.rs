//! Steps to decision boundaries: `kernels/attack/boundary.cu`. Checked by `tests/kernel_boundary.rs`.

use super::{Cost, F32, U32, require, run, run_flat};
use crate::engine::Result;
use crate::engine::cuda::driver::{Address, Driver};
use crate::model::layers::IMAGE_LEN;

/// Operands of [`ranked_target`].
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RankedTargetParams {
    /// f32, `batch x classes`.
    pub logits: Address,
    /// u32, `batch`.
    pub labels: Address,
    /// u32, `batch`.
    pub targets: Address,
    pub batch: u32,
    pub classes: u32,
    /// 1 to classes - 1.
    pub rank: u32,
    pub padding: u32,
}

/// The class of a rank among those that are not the label.
pub fn ranked_target(driver: &dyn Driver, params: &RankedTargetParams) -> Result<()> {
    let name = "ranked_target";
    require((1..params.classes).contains(&params.rank), name, "a rank of 1 to classes - 1", params.rank)?;
    let (batch, classes) = (params.batch as usize, params.classes as usize);
    // A warp a sample. Comparisons alone.
    run_flat(driver, name, params.batch * 32, params, Cost::new(0, batch * (classes * F32 + 2 * U32)))
}

/// Operands of [`class_difference`].
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct ClassDifferenceParams {
    /// u32, `batch`.
    pub labels: Address,
    /// u32, `batch`.
    pub targets: Address,
    /// f32, `batch x classes`.
    pub gradient: Address,
    /// batch * classes.
    pub elements: u32,
    pub classes: u32,
}

/// `e_target - e_label`.
pub fn class_difference(driver: &dyn Driver, params: &ClassDifferenceParams) -> Result<()> {
    let elements = params.elements as usize;
    let batch = elements / params.classes.max(1) as usize;
    let cost = Cost::new(0, elements * F32 + batch * 2 * U32);
    run_flat(driver, "class_difference", params.elements, params, cost)
}

/// Operands of [`boundary_step`].
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BoundaryStepParams {
    /// f32, `batch x classes`, of the current images.
    pub logits: Address,
    /// f32, `batch` images: the gradient of the target's logit less the label's.
    pub gradient: Address,
    /// u32, `batch`.
    pub labels: Address,
    /// u32, `batch`.
    pub targets: Address,
    /// f32, `batch` clean images.
    pub images: Address,
    /// f32, `batch` images, moved.
    pub current: Address,
    pub classes: u32,
    pub largest_share: f32,
    pub overshoot: f32,
    pub padding: u32,
}

/// Moves `batch` images towards the boundary; one whose label or target is no class stays.
pub fn boundary_step(driver: &dyn Driver, batch: usize, params: &BoundaryStepParams) -> Result<()> {
    let elements = batch * IMAGE_LEN;
    // Both projections sum their gradient, the mixture is a multiply-add of each; Newton's passes after the first are a
    // means. Gradient, clean and current image are read, the current one is written.
    let bytes = 4 * elements * F32 + batch * (params.classes as usize * F32 + 2 * U32);
    run(driver, "boundary_step", [batch as u32, 1, 1], params, Cost::new(8 * elements, bytes))
}

/// Operands of [`boundary_keep`].
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BoundaryKeepParams {
    /// f32, `batch x classes`, of the current images.
    pub logits: Address,
    /// u32, `batch`.
    pub labels: Address,
    /// f32, `batch` clean images.
    pub images: Address,
    /// f32, `batch` images; the wrongly predicted ones are moved back.
    pub current: Address,
    /// f32, `batch` images.
    pub closest: Address,
    /// f32, `batch`.
    pub distances: Address,
    pub classes: u32,
    pub backward: f32,
}

/// Keeps the closest of the wrongly predicted images, and moves back from them.
pub fn boundary_keep(driver: &dyn Driver, batch: usize, params: &BoundaryKeepParams) -> Result<()> {
    // Which images are kept and moved depends on the logits.
    let bytes = batch * (params.classes as usize * F32 + U32);
    run(driver, "boundary_keep", [batch as u32, 1, 1], params, Cost::new(0, bytes))
}
