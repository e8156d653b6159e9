//! An engine: the small set of operations on a device from which everything above is written once.
//!
//! Two engines exist. [`mod@reference`] computes in f32 on the CPU and is the oracle for every kernel. [`cuda`] runs
//! our kernels in bf16 with f32 accumulation, through one of two drivers: a real GPU, or the host runner that
//! executes the same kernel sources on the CPU. Callers choose by [`open()`] and see only the trait.

mod apgd;
mod attack_loop;
mod boundary;
pub mod cuda;
mod error;
mod execution;
mod last_layer;
mod margin;
mod open;
mod paired_passes;
mod probes;
mod recording;
pub mod reference;
mod softmax_losses;
mod square;
mod stop;
mod tensor;

pub use apgd::{AdaptivePhase, AdaptivePoint, AdaptiveState, AdaptiveStep, AdaptiveSteps};
pub use attack_loop::{AscentLoss, AttackLoop, AttackSteps, ascend_step_by_step};
pub use boundary::{BoundaryState, BoundaryStep, BoundarySteps};
pub use cuda::driver::{DeviceOptions, WgmmaOff, WgmmaSwitch};
pub use error::{Error, Result};
pub use execution::Execution;
pub use last_layer::{LastLayer, LastLayerGradients, Term};
pub use margin::{Margin, MarginLosses};
pub use open::{DeviceChoice, open, open_dry, open_recorded, open_recorded_with};
pub use paired_passes::PairedPasses;
pub use probes::{LadderStep, Probe, Probes};
pub use recording::{
    KernelUsage, Launch, Mark, Phase, Phases, Record, Recording, kernel_usage, register_target,
};
pub use softmax_losses::{
    CrossEntropy, LossOutputs, NO_CLASS, PairedForm, PairedLoss, PairedLossOutputs, SoftmaxLosses,
};
pub use square::{Pattern, Query, RandomSquares, SearchState};
pub use stop::{StopFlag, unless_stopped};
pub use tensor::{Element, Storage, Tensor, Word};

use crate::model::{ResNet, Weights};
use crate::names::named;
use crate::philox::Key;

/// What a device is, for `environment.json` and the first line of a run.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeviceInfo {
    /// `cpu`, `cuda` or `emulated`.
    pub kind: &'static str,
    /// Product name: "NVIDIA H200", "8 CPU threads".
    pub name: String,
    /// Driver or runtime version, where there is one.
    pub driver: Option<String>,
    /// Code in use: "sm_90a", "ptx", "host".
    pub code: String,
    /// Bytes of device memory, where known.
    pub memory: Option<u64>,
    /// Bytes of the cache that all its multiprocessors share, where known.
    pub cache: Option<u64>,
    /// What SECATEUR_WGMMA switched off of a Hopper's kernels, by name.
    pub wgmma_off: Vec<&'static str>,
}

/// A labelled image set, resident on the device.
#[derive(Clone, Debug)]
pub struct ImageSet {
    /// `count` x 3 x 32 x 32 bytes, the planar layout of the CIFAR files.
    pub images: Tensor<u8>,
    /// `count` class indices.
    pub labels: Tensor<u32>,
    pub count: usize,
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

named! {
    /// What lies around an image that is cropped.
    pub enum Padding {
        /// Black, as torchvision's `RandomCrop(32, padding=4)`.
        Zero = "zero",
        /// The image mirrored at its outermost pixels, which are not repeated: `numpy.pad` and PyTorch's "reflect".
        Reflect = "reflect",
    }
}

/// The random start of an attack; element `e` of a sample uses word `e % 4` of block `e / 4`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Noise {
    /// Uniform on [-radius, radius); the sum with the image is clipped to [0, 1].
    Uniform { radius: f32 },
    /// Normal with this standard deviation: Box-Muller on the word pairs (0, 1) and (2, 3) of a block,
    /// `sqrt(-2 ln(1 - u0)) * (cos, sin)(2 pi u1)`. The sum is not clipped: TRADES and MART take their first
    /// gradient there, and the first [`SignStep`] returns to [0, 1].
    Normal { deviation: f32 },
}

/// One ascent step: `x' <- clip01(proj(x' + step_size * sign(gradient)))`, proj onto the L-inf ball around x.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SignStep {
    pub step_size: f32,
    /// Radius of the ball; `f32::INFINITY` projects onto [0, 1] only.
    pub epsilon: f32,
}

/// Which activations a network pass uses and keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Running statistics, folded into the weights by [`Engine::fold_batch_norm`].
    Eval,
    /// Batch statistics; updates the running statistics. Slot 0 or 1: two train passes may be kept at a time.
    Train { slot: usize },
}

/// Live weights, or their exponential moving average.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightSet {
    Live,
    Average,
}

/// SGD as in PyTorch: `g += weight_decay * w; v = momentum * v + g; w -= learning_rate * v`, on every parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    pub learning_rate: f32,
    pub momentum: f32,
    pub weight_decay: f32,
    /// `average <- d * average + (1 - d) * live` after the step, parameters and running statistics alike; where
    /// there is no average yet, the live weights after the step are the first.
    pub average_decay: Option<f32>,
}

/// Everything besides the weights that the optimizer carries from step to step, in file layout.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerState {
    /// Velocity of each trainable parameter.
    pub momentum: Weights,
    /// The moving average, where one is kept.
    pub average: Option<Weights>,
}

/// A device that holds one ResNet-18 and runs the operations of adversarial training on it.
///
/// Images are f32 in [0, 1], NHWC (`batch x 32 x 32 x 3`); logits are f32 (`batch x classes`). The batch of a call
/// is read off the length of its tensors; any batch from 1 up to the `max_batch` given to [`open()`] works. A call
/// either succeeds or reports an [`Error`]; work may be asynchronous until a `read` or [`Engine::synchronize`].
/// Operations that serve one purpose are traits of their own files, all part of this one.
pub trait Engine:
    SoftmaxLosses
    + AttackLoop
    + PairedPasses
    + LastLayer
    + MarginLosses
    + AdaptiveSteps
    + RandomSquares
    + BoundarySteps
    + Execution
    + Phases
    + Probes
{
    fn device(&self) -> &DeviceInfo;
    fn network(&self) -> ResNet;
    /// Images a micro-batch of the attack should hold, so that its activations stay in cache.
    fn micro_batch(&self) -> usize;

    // Memory. The typed forms `alloc`, `upload`, `write` and `read` are below.
    /// Uninitialised storage; `name` appears in error messages.
    fn alloc_bytes(&self, name: &'static str, bytes: usize) -> Result<Storage>;
    fn write_bytes(&self, storage: &Storage, offset: usize, bytes: &[u8]) -> Result<()>;
    fn read_bytes(&self, storage: &Storage, offset: usize, bytes: &mut [u8]) -> Result<()>;
    /// Waits for all work; reports an error that happened on the way.
    fn synchronize(&self) -> Result<()>;

    /// From now on a forward or backward pass of evaluation ([`Pass::Eval`]) begins only while this stop is not requested, and
    /// ends with [`Error::Stopped`] otherwise. Train passes, which move the running statistics, are never cut off. Returns what was
    /// there before. [`AttackLoop::ascend`] on a GPU is finished first; on the emulator it stops between two steps.
    fn stop_on(&mut self, stop: Option<StopFlag>) -> Option<StopFlag>;

    // Weights and optimizer.
    /// Sets live weights and running statistics; clears momentum and average.
    fn load_weights(&mut self, weights: &Weights) -> Result<()>;
    fn weights(&self, set: WeightSet) -> Result<Weights>;
    fn load_optimizer(&mut self, state: &OptimizerState) -> Result<()>;
    fn optimizer(&self) -> Result<OptimizerState>;
    /// Gradients of the last [`Engine::parameter_gradient`], one tensor a trainable parameter.
    fn gradients(&self) -> Result<Weights>;
    fn sgd_step(&mut self, sgd: &Sgd) -> Result<()>;

    // Data.
    /// Writes the (augmented) images and labels of `samples`.
    fn gather(
        &mut self,
        set: &ImageSet,
        samples: &Tensor<u32>,
        augment: Option<Augment>,
        images: &Tensor<f32>,
        labels: &Tensor<u32>,
    ) -> Result<()>;
    /// `perturbed = images + noise`, the noise of each image keyed by its sample; clipped as [`Noise`] says. `perturbed`
    /// may be `images`.
    fn perturb(
        &mut self,
        noise: Noise,
        key: Key,
        samples: &Tensor<u32>,
        images: &Tensor<f32>,
        perturbed: &Tensor<f32>,
    ) -> Result<()>;

    // The network.
    /// Prepares [`Pass::Eval`] from the current weights; needed again after [`Engine::sgd_step`] or a train pass.
    fn fold_batch_norm(&mut self, set: WeightSet) -> Result<()>;
    /// Logits of `images`; the pass keeps what its backward needs until its next forward.
    fn forward(&mut self, pass: Pass, images: &Tensor<f32>, logits: &Tensor<f32>) -> Result<()>;
    /// Gradient with respect to the images of the pass's last forward.
    fn input_gradient(
        &mut self,
        pass: Pass,
        logit_gradient: &Tensor<f32>,
        gradient: &Tensor<f32>,
    ) -> Result<()>;
    /// Input gradient and [`SignStep`] in one: moves `perturbed`, the images of the pass's last forward.
    fn attack_step(
        &mut self,
        pass: Pass,
        logit_gradient: &Tensor<f32>,
        step: &SignStep,
        images: &Tensor<f32>,
        perturbed: &Tensor<f32>,
    ) -> Result<()>;
    /// Parameter gradients of a train pass; `accumulate` adds to those already there.
    fn parameter_gradient(
        &mut self,
        pass: Pass,
        logit_gradient: &Tensor<f32>,
        accumulate: bool,
    ) -> Result<()>;

    /// [`Engine::parameter_gradient`], set and not added, and [`Engine::attack_step`] of a train pass, from one backward
    /// pass.
    fn parameter_gradient_and_attack_step(
        &mut self,
        pass: Pass,
        logit_gradient: &Tensor<f32>,
        step: &SignStep,
        images: &Tensor<f32>,
        perturbed: &Tensor<f32>,
    ) -> Result<()>;

    // Ranking.
    /// Positions of the `top.len()` largest values, ascending by position; equal values keep the lowest position.
    /// NaN is an error.
    fn top_k(&mut self, values: &Tensor<f32>, top: &Tensor<u32>) -> Result<()>;
    /// Positions of all values `>= threshold`, ascending, at the front of `positions`; returns how many. NaN is an error.
    fn at_least(&mut self, values: &Tensor<f32>, threshold: f32, positions: &Tensor<u32>) -> Result<usize>;

    // Rows: a batch compacted to some of its samples, and back. The typed forms `gather_rows` and `scatter_rows` are below.
    // A row that is not there is an error where the engine reads `rows`; a GPU does not: it gathers words of ones (NaN, an
    // impossible label), so that the next loss shows it, and scatters nothing.
    /// `to[i] = from[rows[i]]`, rows of `row_len` words; `from` and `to` are different storage.
    fn gather_words(
        &mut self,
        from: &Tensor<u32>,
        rows: &Tensor<u32>,
        row_len: usize,
        to: &Tensor<u32>,
    ) -> Result<()>;
    /// `to[rows[i]] = from[i]`, rows of `row_len` words, no row named twice; the other rows of `to` stay as they are.
    fn scatter_words(
        &mut self,
        from: &Tensor<u32>,
        rows: &Tensor<u32>,
        row_len: usize,
        to: &Tensor<u32>,
    ) -> Result<()>;
}

/// Typed calls, the same for every engine.
impl dyn Engine + '_ {
    /// Uninitialised tensor of `len` elements.
    pub fn alloc<T: Element>(&self, name: &'static str, len: usize) -> Result<Tensor<T>> {
        Ok(Tensor::new(self.alloc_bytes(name, len * size_of::<T>())?, len))
    }
    /// New tensor with these values.
    pub fn upload<T: Element>(&self, name: &'static str, values: &[T]) -> Result<Tensor<T>> {
        let tensor = self.alloc(name, values.len())?;
        self.write(&tensor, values)?;
        Ok(tensor)
    }
    /// Overwrites a whole tensor.
    pub fn write<T: Element>(&self, tensor: &Tensor<T>, values: &[T]) -> Result<()> {
        if tensor.len() != values.len() {
            return Err(Error::Length { tensor: tensor.name(), met: values.len(), wanted: tensor.len() });
        }
        self.write_bytes(tensor.storage(), tensor.byte_offset(), bytemuck::cast_slice(values))
    }
    /// Copies a whole tensor back.
    pub fn read<T: Element>(&self, tensor: &Tensor<T>) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); tensor.len()];
        let bytes = bytemuck::cast_slice_mut(&mut values);
        self.read_bytes(tensor.storage(), tensor.byte_offset(), bytes)?;
        Ok(values)
    }
    /// Rows `rows` of `from`, one behind the other: `to[i] = from[rows[i]]`. A row has `row_len` elements; `from` and `to`
    /// are different storage.
    pub fn gather_rows<T: Word>(
        &mut self,
        from: &Tensor<T>,
        rows: &Tensor<u32>,
        row_len: usize,
        to: &Tensor<T>,
    ) -> Result<()> {
        self.gather_words(&from.words(), rows, row_len, &to.words())
    }
    /// The way back: `to[rows[i]] = from[i]`, no row named twice; the other rows of `to` stay as they are.
    pub fn scatter_rows<T: Word>(
        &mut self,
        from: &Tensor<T>,
        rows: &Tensor<u32>,
        row_len: usize,
        to: &Tensor<T>,
    ) -> Result<()> {
        self.scatter_words(&from.words(), rows, row_len, &to.words())
    }
    /// Makes an image set resident: `images` is `labels.len()` x 3 x 32 x 32 bytes.
    pub fn upload_images(&self, images: &[u8], labels: &[u32]) -> Result<ImageSet> {
        Ok(ImageSet {
            images: self.upload("data set images", images)?,
            labels: self.upload("data set labels", labels)?,
            count: labels.len(),
        })
    }
}
