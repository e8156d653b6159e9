//! Softmax cross-entropy: `kernels/loss/`. Checked by `tests/kernel_loss.rs`.

use super::{require, run};
use crate::engine::Result;
use crate::engine::cuda::driver::{Address, Driver};

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct CrossEntropyParams {
    /// f32, batch x classes.
    pub logits: Address,
    /// u32, batch.
    pub labels: Address,
    /// f32, batch: factors on the logit gradient; null for none.
    pub weights: Address,
    /// f32, batch.
    pub losses: Address,
    /// u32, batch.
    pub predictions: Address,
    /// f32, batch x classes.
    pub logit_gradient: Address,
    pub batch: u32,
    /// 1 to 128.
    pub classes: u32,
    pub smoothing: f32,
    pub scale: f32,
}

/// Loss, prediction and logit gradient of each sample.
pub fn cross_entropy(driver: &dyn Driver, params: &CrossEntropyParams) -> Result<()> {
    let (name, classes) = ("cross_entropy", params.classes);
    require((1..=128).contains(&classes), name, "classes: 1 to 128", classes)?;
    // Four warps a block, a sample each.
    run(driver, name, [params.batch.div_ceil(4), 1, 1], params)
}
