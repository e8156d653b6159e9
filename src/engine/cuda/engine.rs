//! The cuda engine behind the [`Engine`] trait: checks lengths, finds addresses, calls the passes and the launches.
//!
//! Checked by tests/engine_agreement.rs against the reference engine, operation by operation and over whole training steps.

use std::cell::Cell;
use std::rc::Rc;

use super::attack_loop::AttackKey;
use super::driver::{Address, Buffer, Driver};
use super::eval::{self, EvalPass};
use super::graphs::Graphs;
use super::launch::conv::ImageEpilogue;
use super::launch::select::{self, Outcome, Selection};
use super::launch::{attack, data, rows};
use super::layout::{self, Layout, STEM_CHANNELS};
use super::paired_passes::Pair;
use super::parameters::Parameters;
use super::scratch::Scratch;
use super::train::{PassKey, TrainPass, Wanted};
use crate::engine::{
    Augment, DeviceInfo, Engine, Error, ImageSet, Noise, OptimizerState, Pass, Result, Sgd, SignStep,
    StopFlag, Storage, Tensor, WeightSet,
};
use crate::model::layers::{IMAGE_LEN, IMAGE_SIDE};
use crate::model::{ResNet, Weights};
use crate::philox::Key;

/// One ResNet-18 on one driver.
pub struct Cuda {
    pub(super) driver: Rc<dyn Driver>,
    info: DeviceInfo,
    pub(super) max_batch: usize,
    pub(super) parameters: Parameters,
    pub(super) eval: EvalPass,
    /// The stem's input of the evaluation pass, and which images it holds.
    pub(super) packed: Buffer,
    pub(super) packed_images: Cell<Option<(Address, usize)>>,
    /// Train slots, made when first used.
    pub(super) train: [Option<TrainPass>; 2],
    /// The clean and the adversarial pass as one, made when first used.
    pub(super) pair: Option<Pair>,
    pub(super) scratch: Scratch,
    pub(super) attacks: Graphs<AttackKey>,
    pub(super) passes: Graphs<PassKey>,
    pub(super) stop: Option<StopFlag>,
    outcome: Buffer,
    /// Parts of a sum of gradients, made when first needed.
    pub(super) sums: Option<Buffer>,
}

impl Cuda {
    pub fn new(driver: Rc<dyn Driver>, network: ResNet, max_batch: usize) -> Result<Self> {
        layout::check(network)?;
        let parameters = Parameters::new(&driver, Layout::new(network))?;
        let image = max_batch * IMAGE_SIDE * IMAGE_SIDE * STEM_CHANNELS;
        Ok(Self {
            info: driver.info(),
            max_batch,
            eval: EvalPass::new(&driver, &parameters, max_batch)?,
            packed: Buffer::new(&driver, "packed images", image * 2)?,
            packed_images: Cell::new(None),
            train: [None, None],
            pair: None,
            scratch: Scratch::new(&driver, &parameters.layout, 1, max_batch)?,
            attacks: Graphs::new(),
            passes: Graphs::new(),
            stop: None,
            outcome: Buffer::new(&driver, "outcome of a selection", size_of::<Outcome>())?,
            sums: None,
            parameters,
            driver,
        })
    }

    pub(super) fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    pub(super) fn shared_driver(&self) -> Rc<dyn Driver> {
        self.driver.clone()
    }

    /// Images in a batch, and the address of the first.
    pub(super) fn images(&self, images: &Tensor<f32>) -> Result<(usize, Address)> {
        let batch = images.len() / IMAGE_LEN;
        if batch == 0 || batch > self.max_batch {
            return Err(Error::Invalid(format!(
                "{}: a batch of {batch} images, expected 1 to {}",
                images.name(),
                self.max_batch
            )));
        }
        Ok((batch, self.sized(images, batch * IMAGE_LEN)?))
    }

    pub(super) fn logits(&self, logits: &Tensor<f32>, batch: usize) -> Result<Address> {
        self.sized(logits, batch * self.parameters.layout.network.classes)
    }

    /// Packs images for the stem, unless the last attack step left these very images packed.
    pub(super) fn pack(&self, images: Address, batch: usize) -> Result<()> {
        if self.packed_images.get() != Some((images, batch)) {
            attack::image_pack(self.driver(), batch, images, self.packed.address())?;
            self.packed_images.set(Some((images, batch)));
        }
        Ok(())
    }

    /// Said before an operation that writes images, which may be those that are packed.
    pub(super) fn images_change(&self) {
        self.packed_images.set(None);
    }

    /// From the gradient of the logits of a slot's last forward pass to whatever is wanted.
    fn train_backward(
        &mut self,
        slot: usize,
        batch: usize,
        logit_gradient: Address,
        wanted: &Wanted,
    ) -> Result<()> {
        let Self { train, passes, parameters, scratch, .. } = self;
        let pass = train.get(slot).ok_or_else(|| no_slot(slot))?;
        let pass =
            pass.as_ref().ok_or_else(|| Error::Invalid(format!("train slot {slot}: no forward pass yet")))?;
        pass.backward(passes, parameters, scratch, batch, &[logit_gradient], wanted)
    }

    /// The last forward pass of this slot cannot go backward any more.
    pub(super) fn forget_train(&mut self, slot: usize) {
        self.train.get_mut(slot).into_iter().flatten().for_each(TrainPass::forget);
    }

    /// No forward pass can go backward any more.
    fn weights_changed(&mut self) {
        self.eval.forget();
        self.train.iter_mut().flatten().for_each(TrainPass::forget);
        self.pair.iter_mut().for_each(Pair::forget);
    }

    fn selection(&self, values: &Tensor<f32>, positions: &Tensor<u32>) -> Result<Selection> {
        Ok(Selection {
            values: self.address(values)?,
            count: values.len(),
            positions: self.address(positions)?,
            outcome: self.outcome.address(),
        })
    }

    /// How many positions the last selection wrote; a NaN among the values is an error.
    fn selected(&self, values: &Tensor<f32>) -> Result<usize> {
        let [outcome] = self.outcome.to_vec::<Outcome>()?[..] else { unreachable!("one outcome") };
        match outcome.nan_position {
            u32::MAX => Ok(outcome.selected as usize),
            position => Err(Error::NotANumber { tensor: values.name(), position: position as usize }),
        }
    }

    /// Rows to move between two tensors, the rows of `indexed` being those that are named.
    fn rows(
        &self,
        [from, to]: [&Tensor<u32>; 2],
        named: &Tensor<u32>,
        row_len: usize,
        [indexed, listed]: [&Tensor<u32>; 2],
    ) -> Result<rows::Rows> {
        if row_len == 0 {
            return Err(Error::Invalid(format!(
                "{}: rows of 0 elements, expected 1 at least",
                indexed.name()
            )));
        }
        self.separate(from, to)?;
        let limit = indexed.len() / row_len;
        self.sized(indexed, limit * row_len)?;
        self.sized(listed, named.len() * row_len)?;
        Ok(rows::Rows {
            from: self.address(from)?,
            to: self.address(to)?,
            rows: self.address(named)?,
            count: named.len(),
            limit,
            row_len,
        })
    }

    /// The images of a batch, and the image gradient's ending that moves them.
    pub(super) fn sign_step(
        &self,
        step: &SignStep,
        images: &Tensor<f32>,
        perturbed: &Tensor<f32>,
    ) -> Result<(usize, ImageEpilogue)> {
        let (batch, clean) = self.images(images)?;
        let perturbed = self.sized(perturbed, images.len())?;
        let packed = self.packed.address();
        Ok((batch, ImageEpilogue::SignStep { step: *step, images: clean, perturbed, packed }))
    }

    fn image_backward(
        &mut self,
        pass: Pass,
        batch: usize,
        logit_gradient: &Tensor<f32>,
        image: &ImageEpilogue,
    ) -> Result<()> {
        let gradient = self.logits(logit_gradient, batch)?;
        match pass {
            Pass::Eval => {
                self.stop.iter().try_for_each(StopFlag::check)?;
                self.eval.backward(&self.parameters, &self.scratch, batch, gradient, image)
            }
            Pass::Train { slot } => {
                let wanted = Wanted { parameters: None, image: Some(*image) };
                self.train_backward(slot, batch, gradient, &wanted)
            }
        }
    }
}

fn no_slot(slot: usize) -> Error {
    Error::Invalid(format!("train slot {slot}: expected 0 or 1"))
}

impl Engine for Cuda {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }
    fn network(&self) -> ResNet {
        self.parameters.layout.network
    }

    fn micro_batch(&self) -> usize {
        eval::micro_batch(self.network(), self.info.cache, self.driver.has_wgmma()).min(self.max_batch)
    }

    fn alloc_bytes(&self, name: &'static str, bytes: usize) -> Result<Storage> {
        Ok(Storage::new(name, Buffer::new(&self.driver, name, bytes)?))
    }
    fn write_bytes(&self, storage: &Storage, offset: usize, bytes: &[u8]) -> Result<()> {
        self.packed_images.set(None);
        self.driver.write(self.buffer(storage)?.address() + offset, bytes)
    }
    fn read_bytes(&self, storage: &Storage, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.driver.read(self.buffer(storage)?.address() + offset, bytes)
    }
    fn synchronize(&self) -> Result<()> {
        self.driver.synchronize()
    }

    fn stop_on(&mut self, stop: Option<StopFlag>) -> Option<StopFlag> {
        std::mem::replace(&mut self.stop, stop)
    }

    fn load_weights(&mut self, weights: &Weights) -> Result<()> {
        self.weights_changed();
        self.parameters.load(weights)
    }
    fn weights(&self, set: WeightSet) -> Result<Weights> {
        self.parameters.read(set)
    }
    fn load_optimizer(&mut self, state: &OptimizerState) -> Result<()> {
        self.parameters.load_optimizer(state)
    }
    fn optimizer(&self) -> Result<OptimizerState> {
        self.parameters.optimizer()
    }
    fn gradients(&self) -> Result<Weights> {
        self.parameters.read_gradients()
    }
    fn sgd_step(&mut self, sgd: &Sgd) -> Result<()> {
        self.weights_changed();
        self.parameters.step(sgd)
    }

    fn gather(
        &mut self,
        set: &ImageSet,
        samples: &Tensor<u32>,
        augment: Option<Augment>,
        images: &Tensor<f32>,
        labels: &Tensor<u32>,
    ) -> Result<()> {
        self.packed_images.set(None);
        let batch = samples.len();
        let gather = data::Gather {
            set: self.sized(&set.images, set.count * IMAGE_LEN)?,
            set_labels: self.sized(&set.labels, set.count)?,
            count: set.count,
            samples: self.address(samples)?,
            images: self.sized(images, batch * IMAGE_LEN)?,
            labels: self.sized(labels, batch)?,
            batch,
        };
        data::gather_images(self.driver(), augment, &gather)
    }

    fn perturb(
        &mut self,
        noise: Noise,
        key: Key,
        samples: &Tensor<u32>,
        images: &Tensor<f32>,
        perturbed: &Tensor<f32>,
    ) -> Result<()> {
        self.packed_images.set(None);
        let batch = samples.len();
        let from = self.sized(images, batch * IMAGE_LEN)?;
        let to = self.sized(perturbed, batch * IMAGE_LEN)?;
        attack::perturb(self.driver(), noise, key, batch, self.address(samples)?, from, to)
    }

    fn fold_batch_norm(&mut self, set: WeightSet) -> Result<()> {
        self.eval.forget();
        self.parameters.fold(set)
    }

    fn forward(&mut self, pass: Pass, images: &Tensor<f32>, logits: &Tensor<f32>) -> Result<()> {
        let (batch, address) = self.images(images)?;
        let logits = self.logits(logits, batch)?;
        match pass {
            Pass::Eval => {
                self.stop.iter().try_for_each(StopFlag::check)?;
                self.pack(address, batch)?;
                self.eval.forward(&self.parameters, &self.scratch, self.packed.address(), batch, logits)
            }
            Pass::Train { slot } => {
                let train = match self.train.get_mut(slot).ok_or_else(|| no_slot(slot))? {
                    Some(train) => train,
                    empty => empty.insert(TrainPass::new(&self.driver, &self.parameters, 1, self.max_batch)?),
                };
                let Self { passes, parameters, scratch, .. } = self;
                train.forward(passes, parameters, scratch, batch, &[address], &[logits])
            }
        }
    }

    fn input_gradient(
        &mut self,
        pass: Pass,
        logit_gradient: &Tensor<f32>,
        gradient: &Tensor<f32>,
    ) -> Result<()> {
        let (batch, address) = self.images(gradient)?;
        let epilogue = ImageEpilogue::Gradient { gradient: address };
        self.image_backward(pass, batch, logit_gradient, &epilogue)
    }

    fn attack_step(
        &mut self,
        pass: Pass,
        logit_gradient: &Tensor<f32>,
        step: &SignStep,
        images: &Tensor<f32>,
        perturbed: &Tensor<f32>,
    ) -> Result<()> {
        let (batch, epilogue) = self.sign_step(step, images, perturbed)?;
        self.packed_images.set(None);
        self.image_backward(pass, batch, logit_gradient, &epilogue)?;
        self.packed_images.set(Some((self.address(perturbed)?, batch)));
        Ok(())
    }

    fn parameter_gradient(
        &mut self,
        pass: Pass,
        logit_gradient: &Tensor<f32>,
        accumulate: bool,
    ) -> Result<()> {
        let Pass::Train { slot } = pass else {
            return Err(Error::Invalid("parameter gradients of an evaluation pass: use a train pass".into()));
        };
        let batch = logit_gradient.len() / self.network().classes;
        let gradient = self.logits(logit_gradient, batch)?;
        let wanted = Wanted { parameters: Some(accumulate), image: None };
        self.train_backward(slot, batch, gradient, &wanted)
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
            return Err(Error::Invalid("parameter gradients of an evaluation pass: use a train pass".into()));
        };
        let (batch, epilogue) = self.sign_step(step, images, perturbed)?;
        let gradient = self.logits(logit_gradient, batch)?;
        let wanted = Wanted { parameters: Some(false), image: Some(epilogue) };
        self.packed_images.set(None);
        self.train_backward(slot, batch, gradient, &wanted)?;
        self.packed_images.set(Some((self.address(perturbed)?, batch)));
        Ok(())
    }

    fn top_k(&mut self, values: &Tensor<f32>, top: &Tensor<u32>) -> Result<()> {
        let k = top.len();
        if k > values.len() {
            return Err(Error::Length { tensor: top.name(), met: k, wanted: values.len() });
        }
        let selection = self.selection(values, top)?;
        select::select_top_k(self.driver(), &selection, k)?;
        self.selected(values).map(drop)
    }

    fn at_least(&mut self, values: &Tensor<f32>, threshold: f32, positions: &Tensor<u32>) -> Result<usize> {
        let wanted = values.len();
        if positions.len() != wanted {
            return Err(Error::Length { tensor: positions.name(), met: positions.len(), wanted });
        }
        let selection = self.selection(values, positions)?;
        select::select_at_least(self.driver(), &selection, threshold)?;
        self.selected(values)
    }

    fn gather_words(
        &mut self,
        from: &Tensor<u32>,
        rows: &Tensor<u32>,
        row_len: usize,
        to: &Tensor<u32>,
    ) -> Result<()> {
        // These may be the images that are packed.
        self.packed_images.set(None);
        let rows = self.rows([from, to], rows, row_len, [from, to])?;
        rows::gather_rows(self.driver(), &rows)
    }

    fn scatter_words(
        &mut self,
        from: &Tensor<u32>,
        rows: &Tensor<u32>,
        row_len: usize,
        to: &Tensor<u32>,
    ) -> Result<()> {
        self.packed_images.set(None);
        let rows = self.rows([from, to], rows, row_len, [to, from])?;
        rows::scatter_rows(self.driver(), &rows)
    }
}
