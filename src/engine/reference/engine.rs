//! The reference engine behind the [`Engine`] trait: checks lengths, ownership and order of calls, and hands plain slices to
//! the operations. Checked by `tests/reference_pytorch.rs` and `tests/reference_engine.rs`.

use super::arena::{Layout, Model};
use super::eval::EvalPass;
use super::loss::Losses;
use super::memory::{Heap, expect_len};
use super::numbers::{Format, Numbers};
use super::tiles::Isa;
use super::train::{SLOTS, TrainPass, Wanted};
use super::{gather, invalid, optimizer, perturb, ranking, rows};
use crate::engine::{
    Augment, DeviceInfo, Element, Engine, Error, ImageSet, Noise, OptimizerState, Pass, Result, Sgd,
    SignStep, StopFlag, Storage, Tensor, WeightSet,
};
use crate::model::layers::IMAGE_LEN;
use crate::model::{ResNet, Weights};
use crate::philox::Key;

/// Images of an attack's micro-batch: enough work for many cores, activations that stay in a shared cache.
const MICRO_BATCH: usize = 64;

/// One ResNet-18 on the CPU.
pub struct Reference {
    info: DeviceInfo,
    pub(super) network: ResNet,
    pub(super) numbers: Numbers,
    max_batch: usize,
    pub(super) heap: Heap,
    layout: Layout,
    /// `None` until weights are loaded.
    model: Option<Model>,
    /// Of the last [`Engine::parameter_gradient`].
    gradients: Option<Vec<f32>>,
    pub(super) eval: EvalPass,
    /// Whether `eval` holds the present weights.
    folded: bool,
    /// Batch of the last forward pass that can still go backward.
    pub(super) eval_batch: Option<usize>,
    pub(super) train: TrainPass,
    /// Whether `train` holds the present weights.
    packed: bool,
    pub(super) train_batch: [Option<usize>; SLOTS],
    /// The same of a pair.
    pub(super) pair_batch: Option<usize>,
    stop: Option<StopFlag>,
}

fn no_weights() -> Error {
    Error::Invalid("no weights: call load_weights first".into())
}

impl Reference {
    /// See [`super::open`].
    pub fn new(network: ResNet, max_batch: usize, format: Format) -> Result<Self> {
        let ResNet { width, classes, .. } = network;
        if width == 0 || !width.is_multiple_of(16) {
            return Err(Error::Invalid(format!(
                "network width {width}: expected a multiple of 16 (16 and 64 are tested)"
            )));
        }
        if classes == 0 || max_batch == 0 {
            return Err(Error::Invalid(format!(
                "{classes} classes, batches up to {max_batch}: both must be at least 1"
            )));
        }
        let threads = rayon::current_num_threads();
        let numbers = Numbers { format, isa: Isa::chosen()? };
        Ok(Reference {
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
            max_batch,
            heap: Heap::new(),
            layout: Layout::new(network),
            model: None,
            gradients: None,
            eval: EvalPass::new(network, numbers),
            folded: false,
            eval_batch: None,
            train: TrainPass::new(network, numbers),
            packed: false,
            train_batch: [None; SLOTS],
            pair_batch: None,
            stop: None,
        })
    }

    /// Number of rows in a tensor of rows, at least one and at most `max_batch`.
    fn batch_of<T: Element>(&self, tensor: &Tensor<T>, row: usize) -> Result<usize> {
        let batch = tensor.len() / row;
        if batch == 0 || batch * row != tensor.len() {
            let wanted = batch.max(1) * row;
            return Err(Error::Length { tensor: tensor.name(), met: tensor.len(), wanted });
        }
        if batch > self.max_batch {
            let name = tensor.name();
            return invalid(format!(
                "{name}: a batch of {batch}, but the engine was opened for at most {}",
                self.max_batch
            ));
        }
        Ok(batch)
    }

    pub(super) fn heap(&self) -> &Heap {
        &self.heap
    }

    pub(super) fn losses(&self) -> Losses<'_> {
        Losses { heap: &self.heap, classes: self.network.classes }
    }

    fn model(&self) -> Result<&Model> {
        self.model.as_ref().ok_or_else(no_weights)
    }

    /// Batch of the pass's last forward, against which a backward call is checked.
    fn forward_batch(&self, pass: Pass, logit_gradient: &Tensor<f32>) -> Result<usize> {
        let last = match pass {
            Pass::Eval => self.eval_batch,
            Pass::Train { slot } => *self.train_batch.get(slot).ok_or_else(|| bad_slot(slot))?,
        };
        let Some(batch) = last else {
            return invalid(format!("{pass:?}: backward without a forward pass on the present weights"));
        };
        expect_len(logit_gradient, batch * self.network.classes)?;
        Ok(batch)
    }

    /// The gradient of the images of the pass's last forward.
    fn image_gradient(
        &mut self,
        pass: Pass,
        logit_gradient: &Tensor<f32>,
        images: &Tensor<f32>,
    ) -> Result<Vec<f32>> {
        let batch = self.forward_batch(pass, logit_gradient)?;
        expect_len(images, batch * IMAGE_LEN)?;
        let dlogits = self.heap.copy(logit_gradient)?;
        let mut gradient = vec![0.0; batch * IMAGE_LEN];
        match pass {
            Pass::Eval => {
                self.stop.iter().try_for_each(StopFlag::check)?;
                self.eval.input_gradient(batch, &dlogits, &mut gradient)
            }
            Pass::Train { slot } => {
                let wanted = Wanted { parameters: None, images: Some(&mut gradient) };
                self.train.backward(slot, &self.layout, batch, &dlogits, wanted);
            }
        }
        Ok(gradient)
    }

    /// Weights changed: folded and packed copies are stale, and no forward pass can go backward any more.
    fn weights_changed(&mut self) {
        (self.folded, self.packed) = (false, false);
        self.eval_batch = None;
        self.train_batch = [None; SLOTS];
        self.pair_batch = None;
    }

    /// A train pass in one of the slots of `train`; says how many images it is of.
    pub(super) fn train_forward(
        &mut self,
        slot: usize,
        images: &Tensor<f32>,
        logits: &Tensor<f32>,
    ) -> Result<usize> {
        let batch = self.batch_of(images, IMAGE_LEN)?;
        expect_len(logits, batch * self.network.classes)?;
        let model = self.model.as_mut().ok_or_else(no_weights)?;
        let images = self.heap.copy(images)?;
        let mut logits = self.heap.view_mut(logits)?;
        if !self.packed {
            self.train.pack(&self.layout, &model.live);
            self.packed = true;
        }
        self.train.forward(slot, &self.layout, &mut model.live, batch, &images, &mut logits);
        // The running statistics moved. An eval pass may still go backward: its folded weights stand.
        self.folded = false;
        Ok(batch)
    }

    /// Parameter gradients of the pass of `batch` images in one of the slots of `train`, and where there is room the images'.
    pub(super) fn train_gradient(
        &mut self,
        slot: usize,
        batch: usize,
        logit_gradient: &Tensor<f32>,
        accumulate: bool,
        images: Option<&mut [f32]>,
    ) -> Result<()> {
        let dlogits = self.heap.copy(logit_gradient)?;
        let gradients = self.gradients.get_or_insert_with(|| vec![0.0; self.layout.trainable]);
        let wanted = Wanted { parameters: Some((gradients, accumulate)), images };
        self.train.backward(slot, &self.layout, batch, &dlogits, wanted);
        Ok(())
    }

    /// Values to rank, none of them NaN.
    fn ranked(&self, values: &Tensor<f32>) -> Result<Vec<f32>> {
        let copy = self.heap.copy(values)?;
        match ranking::first_nan(&copy) {
            Some(position) => Err(Error::NotANumber { tensor: values.name(), position }),
            None => Ok(copy),
        }
    }
}

fn bad_slot(slot: usize) -> Error {
    Error::Invalid(format!("train slot {slot}: expected 0 or 1"))
}

impl Engine for Reference {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn network(&self) -> ResNet {
        self.network
    }

    fn micro_batch(&self) -> usize {
        MICRO_BATCH.min(self.max_batch)
    }

    fn alloc_bytes(&self, name: &'static str, bytes: usize) -> Result<Storage> {
        self.heap.alloc(name, bytes)
    }

    fn write_bytes(&self, storage: &Storage, offset: usize, bytes: &[u8]) -> Result<()> {
        self.heap.write(storage, offset, bytes)
    }

    fn read_bytes(&self, storage: &Storage, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.heap.read(storage, offset, bytes)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn stop_on(&mut self, stop: Option<StopFlag>) -> Option<StopFlag> {
        std::mem::replace(&mut self.stop, stop)
    }

    fn load_weights(&mut self, weights: &Weights) -> Result<()> {
        let live = self.layout.arena_from(weights)?;
        self.model = Some(Model { live, velocity: vec![0.0; self.layout.trainable], average: None });
        self.gradients = None;
        self.weights_changed();
        Ok(())
    }

    fn weights(&self, set: WeightSet) -> Result<Weights> {
        Ok(self.layout.arena_to_weights(self.model()?.arena(set)?))
    }

    fn load_optimizer(&mut self, state: &OptimizerState) -> Result<()> {
        let velocity = self.layout.parameters_from(&state.momentum)?;
        let average = state.average.as_ref().map(|average| self.layout.arena_from(average)).transpose()?;
        let model = self.model.as_mut().ok_or_else(no_weights)?;
        (model.velocity, model.average) = (velocity, average);
        Ok(())
    }

    fn optimizer(&self) -> Result<OptimizerState> {
        let model = self.model()?;
        Ok(OptimizerState {
            momentum: self.layout.arena_to_weights(&model.velocity),
            average: model.average.as_ref().map(|average| self.layout.arena_to_weights(average)),
        })
    }

    fn gradients(&self) -> Result<Weights> {
        match &self.gradients {
            Some(gradients) => Ok(self.layout.arena_to_weights(gradients)),
            None => invalid("no gradients: call parameter_gradient first"),
        }
    }

    fn sgd_step(&mut self, sgd: &Sgd) -> Result<()> {
        let Some(gradients) = &self.gradients else {
            return invalid("sgd_step without gradients: call parameter_gradient first");
        };
        let Model { live, velocity, average } = self.model.as_mut().ok_or_else(no_weights)?;
        optimizer::step(sgd, live, velocity, gradients, average);
        self.weights_changed();
        Ok(())
    }

    fn gather(
        &mut self,
        set: &ImageSet,
        samples: &Tensor<u32>,
        augment: Option<Augment>,
        images: &Tensor<f32>,
        labels: &Tensor<u32>,
    ) -> Result<()> {
        expect_len(&set.images, set.count * IMAGE_LEN)?;
        expect_len(&set.labels, set.count)?;
        expect_len(images, samples.len() * IMAGE_LEN)?;
        expect_len(labels, samples.len())?;
        let indices = self.heap.copy(samples)?;
        if let Some(at) = indices.iter().position(|&sample| sample as usize >= set.count) {
            let (name, sample, count) = (samples.name(), indices[at], set.count);
            return invalid(format!(
                "{name}: sample {sample} at position {at}, but the set has {count} images"
            ));
        }
        let all_labels = self.heap.view(&set.labels)?;
        let chosen: Vec<u32> = indices.iter().map(|&sample| all_labels[sample as usize]).collect();
        drop(all_labels);
        self.heap.view_mut(labels)?.copy_from_slice(&chosen);
        gather::gather(&self.heap.view(&set.images)?, &indices, augment, &mut self.heap.view_mut(images)?);
        Ok(())
    }

    fn perturb(
        &mut self,
        noise: Noise,
        key: Key,
        samples: &Tensor<u32>,
        images: &Tensor<f32>,
        perturbed: &Tensor<f32>,
    ) -> Result<()> {
        expect_len(images, samples.len() * IMAGE_LEN)?;
        expect_len(perturbed, images.len())?;
        let (samples, images) = (self.heap.copy(samples)?, self.heap.copy(images)?);
        perturb::random_start(noise, key, &samples, &images, &mut self.heap.view_mut(perturbed)?);
        Ok(())
    }

    fn fold_batch_norm(&mut self, set: WeightSet) -> Result<()> {
        let model = self.model.as_ref().ok_or_else(no_weights)?;
        self.eval.fold(&self.layout, model.arena(set)?);
        (self.folded, self.eval_batch) = (true, None);
        Ok(())
    }

    fn forward(&mut self, pass: Pass, images: &Tensor<f32>, logits: &Tensor<f32>) -> Result<()> {
        if let Pass::Train { slot } = pass {
            if slot >= SLOTS {
                return Err(bad_slot(slot));
            }
            self.train_batch[slot] = Some(self.train_forward(slot, images, logits)?);
            return Ok(());
        }
        let batch = self.batch_of(images, IMAGE_LEN)?;
        expect_len(logits, batch * self.network.classes)?;
        if self.model.is_none() {
            return Err(no_weights());
        }
        if !self.folded {
            return invalid("Eval: the weights or running statistics changed; call fold_batch_norm first");
        }
        self.stop.iter().try_for_each(StopFlag::check)?;
        self.eval.forward(batch, &self.heap.copy(images)?, &mut self.heap.view_mut(logits)?);
        self.eval_batch = Some(batch);
        Ok(())
    }

    fn input_gradient(
        &mut self,
        pass: Pass,
        logit_gradient: &Tensor<f32>,
        gradient: &Tensor<f32>,
    ) -> Result<()> {
        let values = self.image_gradient(pass, logit_gradient, gradient)?;
        self.heap.view_mut(gradient)?.copy_from_slice(&values);
        Ok(())
    }

    fn attack_step(
        &mut self,
        pass: Pass,
        logit_gradient: &Tensor<f32>,
        step: &SignStep,
        images: &Tensor<f32>,
        perturbed: &Tensor<f32>,
    ) -> Result<()> {
        expect_len(perturbed, images.len())?;
        let gradient = self.image_gradient(pass, logit_gradient, images)?;
        let images = self.heap.copy(images)?;
        perturb::sign_step(step, &images, &gradient, &mut self.heap.view_mut(perturbed)?);
        Ok(())
    }

    fn parameter_gradient(
        &mut self,
        pass: Pass,
        logit_gradient: &Tensor<f32>,
        accumulate: bool,
    ) -> Result<()> {
        let Pass::Train { slot } = pass else {
            return invalid("Eval: parameter gradients need a train pass");
        };
        let batch = self.forward_batch(pass, logit_gradient)?;
        if accumulate && self.gradients.is_none() {
            return invalid(
                "parameter_gradient: nothing to accumulate to; make the first call with accumulate = false",
            );
        }
        self.train_gradient(slot, batch, logit_gradient, accumulate, None)
    }

    fn parameter_gradient_and_attack_step(
        &mut self,
        pass: Pass,
        logit_gradient: &Tensor<f32>,
        step: &SignStep,
        images: &Tensor<f32>,
        perturbed: &Tensor<f32>,
    ) -> Result<()> {
        let Pass::Train { slot } = pass else {
            return invalid("Eval: parameter gradients need a train pass");
        };
        let batch = self.forward_batch(pass, logit_gradient)?;
        expect_len(images, batch * IMAGE_LEN)?;
        expect_len(perturbed, images.len())?;
        let mut gradient = vec![0.0; batch * IMAGE_LEN];
        self.train_gradient(slot, batch, logit_gradient, false, Some(&mut gradient))?;
        let images = self.heap.copy(images)?;
        perturb::sign_step(step, &images, &gradient, &mut self.heap.view_mut(perturbed)?);
        Ok(())
    }

    fn top_k(&mut self, values: &Tensor<f32>, top: &Tensor<u32>) -> Result<()> {
        if top.len() > values.len() {
            return Err(Error::Length { tensor: top.name(), met: top.len(), wanted: values.len() });
        }
        let positions = ranking::top_k(&self.ranked(values)?, top.len());
        self.heap.view_mut(top)?.copy_from_slice(&positions);
        Ok(())
    }

    fn at_least(&mut self, values: &Tensor<f32>, threshold: f32, positions: &Tensor<u32>) -> Result<usize> {
        if threshold.is_nan() {
            return invalid(format!("{}: the threshold is NaN", values.name()));
        }
        if positions.len() < values.len() {
            return Err(Error::Length {
                tensor: positions.name(),
                met: positions.len(),
                wanted: values.len(),
            });
        }
        let values = self.ranked(values)?;
        let mut positions = self.heap.view_mut(positions)?;
        let mut count = 0;
        for (slot, position) in positions.iter_mut().zip(ranking::at_least(&values, threshold)) {
            *slot = position;
            count += 1;
        }
        Ok(count)
    }

    fn gather_words(
        &mut self,
        from: &Tensor<u32>,
        rows: &Tensor<u32>,
        row_len: usize,
        to: &Tensor<u32>,
    ) -> Result<()> {
        rows::gather(&self.heap, from, rows, row_len, to)
    }

    fn scatter_words(
        &mut self,
        from: &Tensor<u32>,
        rows: &Tensor<u32>,
        row_len: usize,
        to: &Tensor<u32>,
    ) -> Result<()> {
        rows::scatter(&self.heap, from, rows, row_len, to)
    }
}
