//! Our kernels as a backend: memory, weights, passes, and addresses for the launches of operations.

use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;

use super::driver::nccl::{DeviceGroup, Reduction};
use super::driver::{Address, Buffer, Driver};
use super::eval::{self, EvalPass, Start};
use super::graphs::Graphs;
use super::launch::attack::image_pack;
use super::launch::conv::ImageEpilogue;
use super::layout::{self, Layout};
use super::parameters::Parameters;
use super::scratch::Scratch;
use super::train::{BackwardRequest, PassKey, TrainPass};
use crate::collective::Collective;
use crate::engine::backend::Backend;
use crate::engine::{
    DeviceInfo, Element, Error, GradRequest, ImageGradient, ParameterGradient, Pass, Reduced, Result, Sgd,
    StopFlag, Storage, Tensor, View, WeightSet,
};
use crate::model::layers::IMAGE_LEN;
use crate::model::{ResNet, Weights};
use crate::ops::attack_steps::AttackKey;

/// One network on one driver.
pub struct Cuda {
    pub(crate) driver: Rc<dyn Driver>,
    info: DeviceInfo,
    max_batch: usize,
    pub(crate) parameters: Parameters,
    pub(crate) eval: EvalPass,
    /// The images that the evaluation pass holds packed.
    packed_images: RefCell<Option<View>>,
    /// Train slots, made when first used.
    train: [Option<TrainPass>; Pass::SLOTS],
    /// The clean and the adversarial pass as one, made when first used: two sets of images in every launch, each with batch statistics
    /// of its own, and a scratch for both. That of the other passes has a capacity of one, and recorded graphs hold its addresses.
    pair: Option<(TrainPass, Scratch)>,
    pub(crate) scratch: Scratch,
    pub(crate) attacks: Graphs<AttackKey>,
    passes: Graphs<PassKey>,
    pub(crate) stop: Option<StopFlag>,
    workspace: Option<Buffer>,
    /// Reduces values from GPU to GPU; without it they pass through the host.
    group: Option<Box<dyn DeviceGroup>>,
}

impl Cuda {
    pub fn new(driver: Rc<dyn Driver>, network: ResNet, max_batch: usize) -> Result<Self> {
        layout::check(network)?;
        let parameters = Parameters::new(&driver, Layout::new(network))?;
        let graphs = driver.options().graphs;
        Ok(Self {
            info: driver.info(),
            max_batch,
            eval: EvalPass::new(&driver, &parameters, max_batch)?,
            packed_images: RefCell::new(None),
            train: [None, None],
            pair: None,
            scratch: Scratch::new(&driver, &parameters.layout, 1, max_batch)?,
            attacks: Graphs::new(graphs),
            passes: Graphs::new(graphs),
            stop: None,
            workspace: None,
            group: None,
            parameters,
            driver,
        })
    }

    pub fn network(&self) -> ResNet {
        self.parameters.layout.network
    }
    pub fn classes(&self) -> usize {
        self.network().classes
    }
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// The device address of a tensor.
    pub fn address<T: Element>(&self, tensor: &Tensor<T>) -> Result<Address> {
        Ok(buffer(tensor.storage())?.address() + tensor.byte_offset())
    }

    /// The address of a tensor that may be absent.
    pub fn optional<T: Element>(&self, tensor: Option<&Tensor<T>>) -> Result<Address> {
        tensor.map_or(Ok(Address::NULL), |tensor| self.address(tensor))
    }

    /// Memory of at least `bytes` bytes for the parts of a result, shared by all operations; null where there are none.
    pub fn workspace(&mut self, bytes: usize) -> Result<Address> {
        match &self.workspace {
            _ if bytes == 0 => Ok(Address::NULL),
            Some(workspace) if workspace.bytes() >= bytes => Ok(workspace.address()),
            _ => {
                let workspace = Buffer::new(&self.driver, "workspace of an operation", bytes)?;
                Ok(self.workspace.insert(workspace).address())
            }
        }
    }

    /// Packs images for the stem, unless the last attack step left these very images packed.
    pub(crate) fn pack(&self, images: &Tensor<f32>, batch: usize) -> Result<()> {
        if *self.packed_images.borrow() != Some(images.view()) {
            image_pack(self.driver(), batch, self.address(images)?, self.eval.packed.address())?;
            self.packed(images);
        }
        Ok(())
    }

    /// These images are what [`EvalPass::packed`] holds.
    pub(crate) fn packed(&self, images: &Tensor<f32>) {
        self.packed_images.replace(Some(images.view()));
    }

    /// What is made of the images' gradient.
    pub(crate) fn image_epilogue(&self, request: &ImageGradient) -> Result<ImageEpilogue> {
        Ok(match *request {
            ImageGradient::Write(gradient) => ImageEpilogue::Gradient { gradient: self.address(gradient)? },
            ImageGradient::Step { step, images, perturbed } => ImageEpilogue::SignStep {
                step,
                images: self.address(images)?,
                perturbed: self.address(perturbed)?,
                packed: self.eval.packed.address(),
            },
        })
    }

    fn addresses(&self, tensors: &[&Tensor<f32>]) -> Result<Vec<Address>> {
        tensors.iter().map(|tensor| self.address(tensor)).collect()
    }
}

/// The engine above refuses calls on passes that were never made.
fn missing(pass: Pass) -> Error {
    Error::Invalid(format!("{pass}: no forward pass on the device"))
}

fn buffer(storage: &Storage) -> Result<&Buffer> {
    storage.memory()
}

impl Backend for Cuda {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn micro_batch(&self) -> usize {
        eval::micro_batch(self.network(), self.info.cache, self.driver.has_wgmma())
    }

    fn alloc(&self, name: &'static str, bytes: usize) -> Result<Rc<dyn Any>> {
        Ok(Rc::new(Buffer::new(&self.driver, name, bytes)?))
    }
    fn write(&self, storage: &Storage, offset: usize, bytes: &[u8]) -> Result<()> {
        self.driver.write(buffer(storage)?.address() + offset, bytes)
    }
    fn read(&self, storage: &Storage, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.driver.read(buffer(storage)?.address() + offset, bytes)
    }
    fn synchronize(&self) -> Result<()> {
        self.driver.synchronize()
    }
    fn written(&self, views: &[View]) {
        let mut packed = self.packed_images.borrow_mut();
        if packed.as_ref().is_some_and(|packed| views.iter().any(|view| view.overlaps(packed))) {
            *packed = None;
        }
    }

    fn load(&mut self, set: WeightSet, weights: Option<&Weights>) -> Result<()> {
        self.parameters.load(set, weights)
    }
    fn weights(&self, set: WeightSet) -> Result<Weights> {
        self.parameters.read(set)
    }
    fn step(&mut self, sgd: &Sgd) -> Result<()> {
        let displacement = self.optional(sgd.displacement)?;
        self.parameters.step(sgd, displacement)
    }
    fn weights_changed(&mut self) -> Result<()> {
        self.parameters.copy_live()
    }

    fn fold(&mut self, set: WeightSet) -> Result<()> {
        self.parameters.fold(set)
    }

    fn forward(&mut self, pass: Pass, images: &[&Tensor<f32>], logits: &[&Tensor<f32>]) -> Result<()> {
        let batch = images[0].len() / IMAGE_LEN;
        if pass.is_eval() {
            self.pack(images[0], batch)?;
            let logits = self.address(logits[0])?;
            return self.eval.launches(&self.parameters, &self.scratch, pass, batch)?.forward(Some(logits));
        }
        let (images, logits) = (self.addresses(images)?, self.addresses(logits)?);
        let Self { driver, passes, parameters, scratch, max_batch, .. } = self;
        match pass {
            Pass::Train { slot } => {
                let train = match &mut self.train[slot] {
                    Some(train) => train,
                    empty => empty.insert(TrainPass::new(driver, parameters, 1, *max_batch)?),
                };
                train.forward(passes, parameters, scratch, batch, &images, &logits)
            }
            _ => {
                let (train, scratch) = match &mut self.pair {
                    Some(pair) => pair,
                    empty => empty.insert((
                        TrainPass::new(driver, parameters, 2, *max_batch)?,
                        Scratch::new(driver, &parameters.layout, 2, *max_batch)?,
                    )),
                };
                train.forward(passes, parameters, scratch, batch, &images, &logits)
            }
        }
    }

    fn backward(
        &mut self,
        pass: Pass,
        logit_gradients: &[&Tensor<f32>],
        request: &GradRequest,
    ) -> Result<()> {
        let batch = logit_gradients[0].len() / self.classes();
        let image = request.images.as_ref().map(|request| self.image_epilogue(request)).transpose()?;
        let gradients = self.addresses(logit_gradients)?;
        let Self { passes, parameters, scratch, .. } = self;
        match (pass, &image) {
            (Pass::Eval | Pass::EvalSplit | Pass::EvalF32, None) => {}
            (Pass::Eval | Pass::EvalSplit | Pass::EvalF32, Some(image)) => {
                let launches = self.eval.launches(parameters, scratch, pass, batch)?;
                launches.backward(Start::LogitGradient(gradients[0]), image)?;
            }
            (Pass::Train { .. } | Pass::Pair, _) => {
                let add = request.parameters.map(|what| what == ParameterGradient::Add);
                let expected = BackwardRequest { parameters: add, image };
                let (train, scratch) = match pass {
                    Pass::Train { slot } => self.train[slot].as_ref().map(|train| (train, &*scratch)),
                    _ => self.pair.as_ref().map(|(train, scratch)| (train, scratch)),
                }
                .ok_or_else(|| missing(pass))?;
                train.backward(passes, parameters, scratch, batch, &gradients, &expected)?;
            }
        }
        if let Some(ImageGradient::Step { perturbed, .. }) = request.images {
            self.packed(perturbed);
        }
        Ok(())
    }

    fn features(&mut self, pass: Pass, set: usize, features: &Tensor<f32>) -> Result<()> {
        let kept = match pass {
            Pass::Eval | Pass::EvalSplit | Pass::EvalF32 => Some(&self.eval.features),
            Pass::Train { slot } => self.train[slot].as_ref().map(|train| &train.features),
            Pass::Pair => self.pair.as_ref().map(|(train, _)| &train.features),
        };
        let from = kept.ok_or_else(|| missing(pass))?.address();
        let (from, to) = (from.offset::<f32>(set * features.len()), self.address(features)?);
        self.driver.copy(from, to, features.len() * size_of::<f32>())
    }

    fn join(&mut self, group: &dyn Collective) -> Result<()> {
        self.group = self.driver.join(group)?;
        Ok(())
    }
    fn all_reduce(&mut self, what: Reduced, group: &dyn Collective) -> Result<()> {
        let (parameters, layout) = (&self.parameters, &self.parameters.layout);
        let (address, len, reduction) = match what {
            Reduced::Gradients => (parameters.gradients.address(), layout.trainable, Reduction::Sum),
            Reduced::RunningStatistics => {
                let first = parameters.live.address().offset::<f32>(layout.trainable);
                (first, layout.total - layout.trainable, Reduction::Mean)
            }
        };
        if let Some(device) = &self.group {
            return device.all_reduce(address, len, reduction);
        }
        let mut values = vec![0.0f32; len];
        self.driver.read(address, bytemuck::cast_slice_mut(&mut values))?;
        match reduction {
            Reduction::Sum => group.all_reduce_sum("gradients", &mut values)?,
            Reduction::Mean => group.all_reduce_mean("running statistics", &mut values)?,
        }
        self.driver.write(address, bytemuck::cast_slice(&values))
    }
    fn abandon_group(&self) {
        self.group.iter().for_each(|group| group.abort());
    }

    fn stop_on(&mut self, stop: Option<StopFlag>) {
        self.stop = stop;
    }
    fn driver(&self) -> Option<&Rc<dyn Driver>> {
        Some(&self.driver)
    }
}
