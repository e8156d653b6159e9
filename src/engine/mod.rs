//! An engine: one network on one device, its memory, its passes, and any operation of [`crate::ops`].
//!
//! Two backends exist. [`mod@crate::cpu`] computes on the CPU; in f32 it is the oracle for every kernel. [`mod@crate::cuda`] runs
//! our kernels in bf16 with f32 accumulation, through a driver: a real GPU, or the emulator that executes the same
//! kernel sources on the CPU. What a call may be given and when is checked here, once, for both.

pub(crate) mod backend;

mod error;
mod group;
mod life_cycle;
mod open;
mod operands;
mod passes;
mod recording;

mod stop;
mod tensor;

pub use crate::cuda::driver::{DeviceOptions, WgmmaOff, WgmmaSwitch};
pub use error::{Error, Result};
pub use group::Reduced;
pub use open::{DeviceChoice, open, open_dry, open_recorded, open_recorded_with, open_with};
pub use operands::Operands;
pub use passes::{AscentLoss, GradRequest, ImageGradient, ParameterGradient, Pass, Sets, SignStep};
pub use recording::{KernelUsage, Launch, Mark, Phase, Record, Recording, kernel_usage, register_target};
pub use stop::{StopFlag, unless_stopped};
pub use tensor::{Element, Storage, Tensor, View, Word};

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::collective::Collective;
use crate::cuda::driver::Driver;
use backend::Backend;
use life_cycle::LifeCycle;

use crate::model::layers::IMAGE_LEN;
use crate::model::{ParameterKind, ResNet, Weights};
use crate::ops::Op;
pub use crate::ops::Sgd;

/// What a device is, for `environment.json` and the first line of a run.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeviceInfo {
    /// `cpu`, `cpu:bf16`, `cuda` or `emulated`.
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

/// A set of values that an engine keeps of every parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightSet {
    /// What is trained, with the running statistics.
    Live,
    /// The exponential moving average of the live ones.
    Average,
    /// The optimizer's velocity, of trainable parameters.
    Momentum,
    /// Of the last backward passes, of trainable parameters.
    Gradients,
}

/// Everything besides the weights that the optimizer carries from step to step, in file layout.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerState {
    /// Velocity of each trainable parameter.
    pub momentum: Weights,
    /// The moving average, where one is kept.
    pub average: Option<Weights>,
}

/// A device that holds one network.
///
/// Images are f32 in [0, 1], NHWC (`batch x 32 x 32 x 3`); logits are f32 (`batch x classes`). The batch of a call
/// is read off the length of its tensors; any batch from 1 up to the `max_batch` given to [`open()`] works. A call
/// either succeeds or reports an [`Error`]; work may be asynchronous until a `read` or [`Engine::synchronize`].
pub struct Engine {
    id: u64,
    network: ResNet,
    max_batch: usize,
    device: Device,
    life: LifeCycle,
    stop: Option<StopFlag>,
    group: Option<Rc<dyn Collective>>,
}

/// The backends.
pub(crate) enum Device {
    Cpu(Box<crate::cpu::Cpu>),
    Cuda(Box<crate::cuda::Cuda>),
}

impl Device {
    fn backend(&self) -> &dyn Backend {
        match self {
            Self::Cpu(cpu) => &**cpu,
            Self::Cuda(cuda) => &**cuda,
        }
    }
    fn backend_mut(&mut self) -> &mut dyn Backend {
        match self {
            Self::Cpu(cpu) => &mut **cpu,
            Self::Cuda(cuda) => &mut **cuda,
        }
    }
}

impl Engine {
    pub(crate) fn new(device: Device, network: ResNet, max_batch: usize) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            network,
            max_batch,
            device,
            life: LifeCycle::default(),
            stop: None,
            group: None,
        }
    }

    pub fn device(&self) -> &DeviceInfo {
        self.device.backend().info()
    }
    pub fn network(&self) -> ResNet {
        self.network
    }
    /// Images that an attack should take at a time, so that its activations stay in cache.
    pub fn micro_batch(&self) -> usize {
        self.device.backend().micro_batch().min(self.max_batch)
    }

    /// Uninitialised tensor of `len` elements; `name` appears in error messages.
    pub fn alloc<T: Element>(&self, name: &'static str, len: usize) -> Result<Tensor<T>> {
        let bytes = len * size_of::<T>();
        let memory = self.device.backend().alloc(name, bytes)?;
        Ok(Tensor::new(Storage::new(name, bytes, self.id, memory), len))
    }

    /// New tensor with these values.
    pub fn upload<T: Element>(&self, name: &'static str, values: &[T]) -> Result<Tensor<T>> {
        let tensor = self.alloc(name, values.len())?;
        self.write(&tensor, values)?;
        Ok(tensor)
    }

    /// Overwrites a whole tensor.
    pub fn write<T: Element>(&self, tensor: &Tensor<T>, values: &[T]) -> Result<()> {
        let mut operands = self.operands();
        operands.writes(tensor, values.len())?;
        let backend = self.device.backend();
        backend.written(&operands.finish()?);
        backend.write(tensor.storage(), tensor.byte_offset(), bytemuck::cast_slice(values))
    }

    /// Copies a whole tensor back.
    pub fn read<T: Element>(&self, tensor: &Tensor<T>) -> Result<Vec<T>> {
        self.operands().reads(tensor, tensor.len())?;
        let mut values = vec![T::zeroed(); tensor.len()];
        let bytes = bytemuck::cast_slice_mut(&mut values);
        self.device.backend().read(tensor.storage(), tensor.byte_offset(), bytes)?;
        Ok(values)
    }

    /// Waits for all work; reports an error that happened on the way.
    pub fn synchronize(&self) -> Result<()> {
        self.device.backend().synchronize()
    }

    /// Sets live weights and running statistics; clears momentum and average.
    pub fn load_weights(&mut self, weights: &Weights) -> Result<()> {
        self.expect_tensors(weights, |_| true)?;
        self.device.backend_mut().load(WeightSet::Live, Some(weights))?;
        self.life.loaded();
        Ok(())
    }

    /// Sets momentum and average.
    ///
    /// # Errors
    /// Where no weights are loaded; where a tensor is missing or has another shape, and then nothing is set.
    pub fn load_optimizer(&mut self, state: &OptimizerState) -> Result<()> {
        self.life.expect_weights()?;
        self.expect_tensors(&state.momentum, ParameterKind::trainable)?;
        state.average.iter().try_for_each(|average| self.expect_tensors(average, |_| true))?;
        let backend = self.device.backend_mut();
        backend.load(WeightSet::Average, state.average.as_ref())?;
        backend.load(WeightSet::Momentum, Some(&state.momentum))?;
        self.life.average_loaded(state.average.is_some());
        Ok(())
    }

    /// One set of values by name, in file layout.
    ///
    /// # Errors
    /// Where there are none.
    pub fn weights(&self, set: WeightSet) -> Result<Weights> {
        self.life.expect_set(set)?;
        self.device.backend().weights(set)
    }

    /// Momentum and average.
    pub fn optimizer(&self) -> Result<OptimizerState> {
        let average = self.life.has_average().then(|| self.weights(WeightSet::Average)).transpose()?;
        Ok(OptimizerState { momentum: self.weights(WeightSet::Momentum)?, average })
    }

    /// One step of the optimizer by the gradients of the last backward passes.
    ///
    /// # Errors
    /// Where there are no gradients, or a displacement that is not of this network.
    pub fn step(&mut self, sgd: &Sgd) -> Result<()> {
        self.life.expect_set(WeightSet::Gradients)?;
        let mut operands = self.operands();
        let trainable = || self.network.elements(ParameterKind::trainable);
        sgd.displacement.map_or(Ok(()), |displacement| operands.reads(displacement, trainable()))?;
        self.device.backend().written(&operands.finish()?);
        self.device.backend_mut().step(sgd)?;
        self.life.stepped(sgd.average_decay.is_some());
        Ok(())
    }

    /// Prepares [`Pass::Eval`] from a set of weights; needed again after [`Engine::step`] or a train pass.
    pub fn fold_batch_norm(&mut self, set: WeightSet) -> Result<()> {
        if !matches!(set, WeightSet::Live | WeightSet::Average) {
            return Err(Error::Invalid(format!(
                "{set:?} are no weights to evaluate: expected Live or Average"
            )));
        }
        self.life.expect_set(set)?;
        self.device.backend_mut().fold(set)?;
        self.life.folded();
        Ok(())
    }

    /// Logits of `images`; the pass keeps what its backward needs until its next forward.
    ///
    /// # Errors
    /// [`Error::Stopped`] for an evaluation pass where a stop is requested ([`Engine::stop_on`]).
    pub fn forward<'a>(
        &mut self,
        pass: Pass,
        images: impl Into<Sets<'a>>,
        logits: impl Into<Sets<'a>>,
    ) -> Result<()> {
        let (images, logits) = (images.into(), logits.into());
        let (images, logits) = (expect_sets(pass, &images)?, expect_sets(pass, &logits)?);
        let batch = self.batch_of(images[0])?;
        let mut operands = self.operands();
        for (images, logits) in images.iter().zip(logits) {
            operands.reads(images, batch * IMAGE_LEN)?;
            operands.writes(logits, batch * self.network.classes)?;
        }
        self.life.expect_ready(pass)?;
        self.begin(pass, operands)?;
        self.life.forget(pass);
        self.device.backend_mut().forward(pass, images, logits)?;
        self.life.forwarded(pass, batch);
        Ok(())
    }

    /// From the gradient of the logits of the pass's last forward to what is requested.
    ///
    /// # Errors
    /// Where the pass has no forward on the present weights, or cannot compute what is requested.
    pub fn backward<'a>(
        &mut self,
        pass: Pass,
        logit_gradients: impl Into<Sets<'a>>,
        request: GradRequest,
    ) -> Result<()> {
        let logit_gradients = logit_gradients.into();
        let logit_gradients = expect_sets(pass, &logit_gradients)?;
        let batch = self.life.expect_forward(pass)?;
        let mut operands = self.operands();
        for gradient in logit_gradients {
            operands.reads(gradient, batch * self.network.classes)?;
        }
        match request.images {
            _ if pass == Pass::Pair && request.images.is_some() => {
                return Err(Error::Invalid(format!(
                    "{pass}: no gradient of the images, expected one train pass"
                )));
            }
            None => {}
            Some(ImageGradient::Write(gradient)) => operands.writes(gradient, batch * IMAGE_LEN)?,
            Some(ImageGradient::Step { images, perturbed, .. }) => {
                operands.maps(images, perturbed, batch * IMAGE_LEN)?;
            }
        }
        match request.parameters {
            Some(_) if pass.is_eval() => {
                return Err(Error::Invalid(format!("{pass}: no parameter gradients, expected a train pass")));
            }
            Some(ParameterGradient::Add) => self.life.expect_set(WeightSet::Gradients)?,
            _ => {}
        }
        self.begin(pass, operands)?;
        self.device.backend_mut().backward(pass, logit_gradients, &request)?;
        if request.parameters.is_some() {
            self.life.has_gradients();
        }
        Ok(())
    }

    /// The features of one set of the pass's last forward, `batch x features`: what its last layer saw.
    ///
    /// # Errors
    /// Where the pass has no forward on the present weights, or not as many sets.
    pub fn features(&mut self, pass: Pass, set: usize, features: &Tensor<f32>) -> Result<()> {
        pass.check()?;
        if set >= pass.sets() {
            return Err(Error::Invalid(format!("{pass}: set {set} of {}", pass.sets())));
        }
        let batch = self.life.expect_forward(pass)?;
        let mut operands = self.operands();
        operands.writes(features, batch * self.network.features())?;
        self.device.backend().written(&operands.finish()?);
        self.device.backend_mut().features(pass, set, features)
    }

    /// One operation.
    ///
    /// # Errors
    /// Where its operands are not what its contract says; then nothing was written.
    pub fn run<Output>(&mut self, op: &impl Op<Output>) -> Result<Output> {
        let mut operands = self.operands();
        op.check(&mut operands)?;
        operands.sets().iter().try_for_each(|&set| self.life.expect_set(set))?;
        if let Some((pass, batch)) = op.passes() {
            expect_set_count(pass, 1)?;
            self.expect_batch("images", batch)?;
            self.life.expect_ready(pass)?;
            self.life.forget(pass);
        }
        let weights_change = operands.weights_change();
        self.device.backend().written(&operands.finish()?);
        let output = match &mut self.device {
            Device::Cpu(cpu) => op.cpu(cpu),
            Device::Cuda(cuda) => op.cuda(cuda),
        };
        if weights_change {
            self.device.backend_mut().weights_changed()?;
            self.life.weights_changed();
        }
        output
    }

    /// From now on a forward or backward pass of evaluation begins only while this stop is not requested, and ends with
    /// [`Error::Stopped`] otherwise. Train passes, which move the running statistics, are never cut off. Returns the former request. A
    /// replayed attack on a GPU is finished first.
    pub fn stop_on(&mut self, stop: Option<StopFlag>) -> Option<StopFlag> {
        self.device.backend_mut().stop_on(stop.clone());
        std::mem::replace(&mut self.stop, stop)
    }

    /// What launches its kernels, for measurements; `None` for the CPU.
    pub fn driver(&self) -> Option<&Rc<dyn Driver>> {
        self.device.backend().driver()
    }

    /// The part of a training step that begins, for records of launches and for profilers.
    pub fn phase(&self, phase: Phase) {
        if let Some(driver) = self.driver() {
            driver.phase(phase);
        }
    }
    /// A moment between what was asked for before and after, by the device's own clock where it has one; nobody waits.
    pub fn mark(&self) -> Result<Mark> {
        self.driver().map_or_else(|| Ok(Mark::now()), |driver| driver.mark())
    }
    /// Seconds from one moment to a later one, which has come: see [`Engine::synchronize`].
    pub fn seconds(&self, from: &Mark, to: &Mark) -> Result<f64> {
        match self.driver() {
            Some(driver) => driver.seconds(from, to),
            None => from.clock_seconds(to),
        }
    }

    /// Refuses weights that lack one of the tensors, or have it in another shape.
    fn expect_tensors(&self, weights: &Weights, which: impl Fn(ParameterKind) -> bool) -> Result<()> {
        for parameter in self.network.parameters().iter().filter(|parameter| which(parameter.kind)) {
            weights.get(&parameter.name, &parameter.shape)?;
        }
        Ok(())
    }

    fn operands(&self) -> Operands {
        Operands::new(self.id, self.network)
    }

    /// The last look before a pass: operands that overlap, a stop; tells the backend what is written.
    fn begin(&self, pass: Pass, operands: Operands) -> Result<()> {
        let written = operands.finish()?;
        if pass.is_eval() {
            self.stop.iter().try_for_each(StopFlag::check)?;
        }
        self.device.backend().written(&written);
        Ok(())
    }

    fn batch_of(&self, images: &Tensor<f32>) -> Result<usize> {
        let batch = images.len() / IMAGE_LEN;
        self.expect_batch(images.name(), batch)?;
        Ok(batch)
    }

    fn expect_batch(&self, name: &str, batch: usize) -> Result<()> {
        if (1..=self.max_batch).contains(&batch) {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "{name}: a batch of {batch} images, expected 1 to {}: what the engine was opened for",
            self.max_batch
        )))
    }
}

/// The tensors of a pass, one a set of images.
fn expect_sets<'s, 'a>(pass: Pass, sets: &'s Sets<'a>) -> Result<&'s [&'a Tensor<f32>]> {
    let slice = sets.as_slice();
    expect_set_count(pass, slice.len())?;
    Ok(slice)
}

fn expect_set_count(pass: Pass, sets: usize) -> Result<()> {
    pass.check()?;
    if sets == pass.sets() {
        return Ok(());
    }
    Err(Error::Invalid(format!("{pass}: {sets} sets of images, expected {}", pass.sets())))
}
