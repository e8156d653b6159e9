//! The CPU as a backend: memory, weights and passes.

use std::any::Any;
use std::cell::RefMut;
use std::rc::Rc;

use super::arena::{Layout, Model};
use super::eval::EvalPass;
use super::isa::Isa;
use super::memory::{Heap, Input};
use super::numbers::{Format, Numbers};
use super::sign_step::sign_step;
use super::train::{PAIR, TrainPass, Wanted};
use crate::collective::Collective;
use crate::cuda::driver::Driver;
use crate::engine::backend::Backend;
use crate::engine::{
    DeviceInfo, Element, Error, GradRequest, ImageGradient, ParameterGradient, Pass, Reduced, Result, Sgd,
    StopFlag, Storage, Tensor, View, WeightSet,
};
use crate::model::layers::IMAGE_LEN;
use crate::model::{ResNet, Weights};

/// Images of an attack's micro-batch: enough work for many cores, activations that stay in a shared cache.
const MICRO_BATCH: usize = 64;

/// One network on the CPU.
pub struct Cpu {
    info: DeviceInfo,
    network: ResNet,
    numbers: Numbers,
    heap: Heap,
    layout: Layout,
    /// `None` until weights are loaded.
    model: Option<Model>,
    gradients: Option<Vec<f32>>,
    eval: EvalPass,
    /// [`Pass::EvalF32`], where `eval` is not in f32.
    eval_f32: Option<EvalPass>,
    /// The weights that are folded, and whether they are in `eval_f32`.
    folded: (WeightSet, bool),
    train: TrainPass,
    /// Whether `train` holds the present weights.
    packed: bool,
    stop: Option<StopFlag>,
}

impl Cpu {
    /// See [`super::open`].
    pub fn new(network: ResNet, format: Format) -> Result<Self> {
        let ResNet { blocks, width, classes } = network;
        if width == 0 || !width.is_multiple_of(16) {
            return Err(Error::Invalid(format!(
                "network width {width}: expected a multiple of 16 (16, 32 and 64 are tested)"
            )));
        }
        if blocks.contains(&0) {
            return Err(Error::Invalid(format!("blocks {blocks:?}: expected at least 1 in each stage")));
        }
        if classes == 0 {
            return Err(Error::Invalid("0 classes, expected 1 at least".into()));
        }
        let threads = rayon::current_num_threads();
        let numbers = Numbers { format, isa: Isa::chosen()? };
        Ok(Self {
            info: DeviceInfo {
                kind: match format {
                    Format::F32 => "cpu",
                    Format::Bf16 => "cpu:bf16",
                },
                name: format!("{threads} CPU thread{}", if threads == 1 { "" } else { "s" }),
                driver: None,
                code: numbers.isa.name.into(),
                memory: None,
                cache: None,
                wgmma_off: Vec::new(),
            },
            network,
            numbers,
            heap: Heap::default(),
            layout: Layout::new(network),
            model: None,
            gradients: None,
            eval: EvalPass::new(network, numbers),
            eval_f32: None,
            folded: (WeightSet::Live, false),
            train: TrainPass::new(network, numbers),
            packed: false,
            stop: None,
        })
    }

    pub fn network(&self) -> ResNet {
        self.network
    }
    pub fn classes(&self) -> usize {
        self.network.classes
    }
    pub fn numbers(&self) -> Numbers {
        self.numbers
    }

    /// What an operation reads.
    pub fn input<'a, T: Element>(&self, tensor: &'a Tensor<T>) -> Result<Input<'a, T>> {
        self.heap.input(tensor)
    }
    /// What it writes.
    pub fn output<'a, T: Element>(&self, tensor: &'a Tensor<T>) -> Result<RefMut<'a, [T]>> {
        self.heap.output(tensor)
    }
    /// # Errors
    /// [`Error::Stopped`] where a stop is requested.
    pub fn check_stop(&self) -> Result<()> {
        self.stop.iter().try_for_each(StopFlag::check)
    }

    /// Where the tensors of the network lie in its arenas, and the live ones.
    pub fn live(&mut self) -> Result<(&Layout, &mut [f32])> {
        let model = self.model.as_mut().ok_or_else(missing)?;
        Ok((&self.layout, &mut model.live))
    }
    /// The same, and the gradients of the parameters.
    pub fn live_and_gradients(&mut self) -> Result<(&Layout, &mut [f32], &[f32])> {
        let (Some(model), Some(gradients)) = (&mut self.model, &self.gradients) else {
            return Err(missing());
        };
        Ok((&self.layout, &mut model.live, gradients))
    }

    fn model(&self) -> Result<&Model> {
        self.model.as_ref().ok_or_else(missing)
    }
}

impl Model {
    /// The weights that an evaluation pass folds.
    fn arena(&self, set: WeightSet) -> Result<&[f32]> {
        match set {
            WeightSet::Average => self.average.as_deref().ok_or_else(missing),
            _ => Ok(&self.live),
        }
    }
}

/// The engine above refuses calls before there are weights or gradients.
fn missing() -> Error {
    Error::Invalid("no weights or gradients on the CPU".into())
}

/// Slots of [`TrainPass`] that a pass takes.
fn slots(pass: Pass) -> [usize; 2] {
    match pass {
        Pass::Train { slot } => [slot; 2],
        _ => PAIR,
    }
}

impl Backend for Cpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn micro_batch(&self) -> usize {
        MICRO_BATCH
    }

    fn alloc(&self, name: &'static str, bytes: usize) -> Result<Rc<dyn Any>> {
        self.heap.alloc(name, bytes)
    }
    fn write(&self, storage: &Storage, offset: usize, bytes: &[u8]) -> Result<()> {
        self.heap.write(storage, offset, bytes)
    }
    fn read(&self, storage: &Storage, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.heap.read(storage, offset, bytes)
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn written(&self, views: &[View]) {
        self.heap.begin(views);
    }

    fn load(&mut self, set: WeightSet, weights: Option<&Weights>) -> Result<()> {
        match (set, weights) {
            (WeightSet::Live, Some(weights)) => {
                let live = self.layout.arena_from(weights)?;
                self.model = Some(Model { live, velocity: vec![0.0; self.layout.trainable], average: None });
                self.packed = false;
            }
            (WeightSet::Average, weights) => {
                let average = weights.map(|weights| self.layout.arena_from(weights)).transpose()?;
                self.model.as_mut().ok_or_else(missing)?.average = average;
            }
            (WeightSet::Momentum, Some(weights)) => {
                let velocity = self.layout.parameters_from(weights)?;
                self.model.as_mut().ok_or_else(missing)?.velocity = velocity;
            }
            (set, _) => return Err(Error::Invalid(format!("{set:?}: a set that cannot be loaded"))),
        }
        Ok(())
    }

    fn weights(&self, set: WeightSet) -> Result<Weights> {
        let model = self.model()?;
        Ok(match set {
            WeightSet::Live => self.layout.arena_to_weights(&model.live),
            WeightSet::Average => self.layout.arena_to_weights(model.average.as_ref().ok_or_else(missing)?),
            WeightSet::Momentum => self.layout.arena_to_weights(&model.velocity),
            WeightSet::Gradients => {
                self.layout.arena_to_weights(self.gradients.as_ref().ok_or_else(missing)?)
            }
        })
    }

    fn step(&mut self, sgd: &Sgd) -> Result<()> {
        let (Some(model), Some(gradients)) = (&mut self.model, &self.gradients) else {
            return Err(missing());
        };
        let displacement = sgd.displacement.map(|displacement| self.heap.input(displacement)).transpose()?;
        sgd.cpu(model, gradients, displacement.as_deref());
        self.packed = false;
        Ok(())
    }
    fn weights_changed(&mut self) -> Result<()> {
        self.packed = false;
        Ok(())
    }

    fn fold(&mut self, set: WeightSet) -> Result<()> {
        let Some(model) = &self.model else { return Err(missing()) };
        self.eval.fold(&self.layout, model.arena(set)?);
        self.folded = (set, false);
        Ok(())
    }

    fn forward(&mut self, pass: Pass, images: &[&Tensor<f32>], logits: &[&Tensor<f32>]) -> Result<()> {
        let batch = images[0].len() / IMAGE_LEN;
        if pass == Pass::EvalF32 && self.numbers.format != Format::F32 {
            let numbers = Numbers { format: Format::F32, ..self.numbers };
            let eval = self.eval_f32.get_or_insert_with(|| EvalPass::new(self.network, numbers));
            if let (set, false) = self.folded {
                let Some(model) = &self.model else { return Err(missing()) };
                eval.fold(&self.layout, model.arena(set)?);
                self.folded = (set, true);
            }
            eval.forward(batch, &self.heap.input(images[0])?, &mut self.heap.output(logits[0])?);
            return Ok(());
        }
        if pass.is_eval() {
            self.eval.forward(batch, &self.heap.input(images[0])?, &mut self.heap.output(logits[0])?);
            return Ok(());
        }
        let model = self.model.as_mut().ok_or_else(missing)?;
        if !self.packed {
            self.train.pack(&self.layout, &model.live);
            self.packed = true;
        }
        for ((images, logits), slot) in images.iter().zip(logits).zip(slots(pass)) {
            let (images, mut logits) = (self.heap.input(images)?, self.heap.output(logits)?);
            self.train.forward(slot, &self.layout, &mut model.live, batch, &images, &mut logits);
        }
        Ok(())
    }

    fn backward(
        &mut self,
        pass: Pass,
        logit_gradients: &[&Tensor<f32>],
        request: &GradRequest,
    ) -> Result<()> {
        let batch = logit_gradients[0].len() / self.network.classes;
        let mut image_gradient = request.images.map(|_| vec![0.0; batch * IMAGE_LEN]);
        for ((logit_gradient, slot), set) in logit_gradients.iter().zip(slots(pass)).zip(0..) {
            let dlogits = self.heap.input(logit_gradient)?;
            if let (true, Some(images)) = (pass.is_eval(), &mut image_gradient) {
                self.eval.input_gradient(&dlogits, images);
                continue;
            }
            let trainable = self.layout.trainable;
            let parameters = request.parameters.map(|what| {
                let gradients = self.gradients.get_or_insert_with(|| vec![0.0; trainable]);
                (&mut gradients[..], what == ParameterGradient::Add || set > 0)
            });
            let expected = Wanted { parameters, images: image_gradient.as_deref_mut() };
            self.train.backward(slot, &self.layout, batch, &dlogits, expected);
        }
        match (request.images, image_gradient) {
            (Some(ImageGradient::Write(tensor)), Some(values)) => {
                self.heap.output(tensor)?.copy_from_slice(&values);
            }
            (Some(ImageGradient::Step { step, images, perturbed }), Some(values)) => {
                let images = self.heap.input(images)?;
                sign_step(&step, &images, &values, &mut self.heap.output(perturbed)?);
            }
            _ => {}
        }
        Ok(())
    }

    fn features(&mut self, pass: Pass, set: usize, features: &Tensor<f32>) -> Result<()> {
        let kept = if pass.is_eval() { self.eval.features() } else { self.train.features(slots(pass)[set]) };
        self.heap.output(features)?.copy_from_slice(kept);
        Ok(())
    }

    fn join(&mut self, _group: &dyn Collective) -> Result<()> {
        Ok(())
    }
    fn all_reduce(&mut self, what: Reduced, group: &dyn Collective) -> Result<()> {
        match what {
            Reduced::Gradients => {
                group.all_reduce_sum("gradients", self.gradients.as_mut().ok_or_else(missing)?)?;
            }
            Reduced::RunningStatistics => {
                let live = &mut self.model.as_mut().ok_or_else(missing)?.live;
                group.all_reduce_mean("running statistics", &mut live[self.layout.trainable..])?;
            }
        }
        Ok(())
    }
    fn abandon_group(&self) {}

    fn stop_on(&mut self, stop: Option<StopFlag>) {
        self.stop = stop;
    }
    fn driver(&self) -> Option<&Rc<dyn Driver>> {
        None
    }
}
