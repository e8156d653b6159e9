//! The network's tensors on the device: flat arenas, their bf16 copies, and the optimizer's state.
//!
//! One launch serves all of them ([`Layout`] says where each lies).

use std::rc::Rc;

use super::driver::{Address, Buffer, Driver};
use super::launch::norm::{self, FoldParams};
use super::layout::{self, Layout, ORDER};
use crate::engine::{Error, Result, Sgd, WeightSet};
use crate::model::Weights;
use crate::model::layers::BN_EPSILON;
use crate::ops::sgd::{self, SgdArenas, arena_room};

/// All parameters, their gradients and copies.
pub struct Parameters {
    driver: Rc<dyn Driver>,
    pub layout: Layout,
    /// f32, [`Layout::total`] elements: trainable parameters, then running statistics.
    pub live: Buffer,
    /// The moving average of `live`, from the first step that keeps one.
    average: Option<Buffer>,
    velocity: Buffer,
    /// f32, [`Layout::trainable`] elements.
    pub gradients: Buffer,
    /// bf16 convolution weights of the train pass.
    pub copies: Buffer,
    /// bf16 convolution weights with evaluation-mode BatchNorm folded in, and the biases that remain.
    pub folded: Buffer,
    pub bias: Buffer,
    /// Linear weights that go with `folded`: the live ones or the average's.
    folded_set: Option<WeightSet>,
    fold_layers: Buffer,
}

impl Parameters {
    pub fn new(driver: &Rc<dyn Driver>, layout: Layout) -> Result<Self> {
        let buffer = |name, elements: usize, bytes: usize| Buffer::new(driver, name, elements * bytes);
        Ok(Self {
            live: buffer("parameters", arena_room(layout.total), 4)?,
            average: None,
            velocity: buffer("momentum", arena_room(layout.trainable), 4)?,
            gradients: buffer("parameter gradients", arena_room(layout.trainable), 4)?,
            copies: buffer("bf16 weights", layout::packed_len(&layout), 2)?,
            folded: buffer("folded weights", layout::packed_len(&layout), 2)?,
            bias: buffer("folded biases", layout.channels, 4)?,
            folded_set: None,
            fold_layers: Buffer::from_slice(driver, "layers to fold", &norm::fold_table(&layout))?,
            driver: driver.clone(),
            layout,
        })
    }

    /// Replaces a set of weights: live ones start momentum from zero and keep no average; `None` drops the average.
    pub fn load(&mut self, set: WeightSet, weights: Option<&Weights>) -> Result<()> {
        let Some(weights) = weights else {
            self.average = None;
            return Ok(());
        };
        let trainable = set == WeightSet::Momentum;
        let mut arena = vec![0.0; if trainable { self.layout.trainable } else { self.layout.total }];
        self.layout.pack(ORDER, weights, &mut arena)?;
        if set == WeightSet::Average && self.average.is_none() {
            self.average = Some(Buffer::new(&self.driver, "average", self.live.bytes())?);
        }
        self.driver.write(self.arena(set)?.address(), bytemuck::cast_slice(&arena))?;
        if set == WeightSet::Live {
            self.driver.fill(self.velocity.address(), 0, self.velocity.bytes())?;
            self.average = None;
            self.copy_live()?;
        }
        Ok(())
    }

    /// Makes the bf16 copies of the live weights.
    pub fn copy_live(&self) -> Result<()> {
        let (live, copies) = (self.live.address(), self.copies.address());
        sgd::weights_to_bf16(&*self.driver, (&self.layout).into(), live, copies)
    }

    pub fn read(&self, set: WeightSet) -> Result<Weights> {
        let elements = match set {
            WeightSet::Live | WeightSet::Average => self.layout.total,
            WeightSet::Momentum | WeightSet::Gradients => self.layout.trainable,
        };
        Ok(self.layout.unpack(ORDER, &self.arena(set)?.to_vec::<f32>()?[..elements]))
    }

    /// One optimizer step from `gradients`; takes `displacement` back, where it is not null.
    pub fn step(&mut self, sgd: &Sgd, displacement: Address) -> Result<()> {
        let average = self.average.as_ref().filter(|_| sgd.average_decay.is_some());
        let arenas = SgdArenas {
            weights: self.live.address(),
            velocity: self.velocity.address(),
            gradients: self.gradients.address(),
            average: average.map_or(Address::NULL, Buffer::address),
            displacement,
            copies: self.copies.address(),
            extents: (&self.layout).into(),
        };
        sgd.cuda(&*self.driver, arenas)?;
        if sgd.average_decay.is_some() && self.average.is_none() {
            let average = Buffer::new(&self.driver, "average", self.live.bytes())?;
            self.driver.copy(self.live.address(), average.address(), self.live.bytes())?;
            self.average = Some(average);
        }
        Ok(())
    }

    /// Folds BatchNorm for evaluation passes.
    pub fn fold(&mut self, set: WeightSet) -> Result<()> {
        let arena = self.arena(set)?.address();
        let first = &self.layout.convs[0];
        let params = FoldParams {
            layers: self.fold_layers.address(),
            weights: arena,
            gamma: arena.offset::<f32>(first.bn_weight),
            beta: arena.offset::<f32>(first.bn_bias),
            mean: arena.offset::<f32>(first.running_mean),
            variance: arena.offset::<f32>(first.running_var),
            folded: self.folded.address(),
            bias: self.bias.address(),
            layer_count: self.layout.convs.len() as u32,
            epsilon: BN_EPSILON,
        };
        norm::batch_norm_fold(&*self.driver, &self.layout, &params)?;
        self.folded_set = Some(set);
        Ok(())
    }

    /// The linear layer that belongs to the folded convolutions: weight and bias.
    pub fn folded_linear(&self) -> Result<(Address, Address)> {
        let set = self.folded_set.ok_or_else(|| {
            Error::Invalid("evaluation pass: fold_batch_norm was not called since the weights changed".into())
        })?;
        Ok(self.linear(self.arena(set)?.address()))
    }

    /// The live linear layer: weight and bias.
    pub fn live_linear(&self) -> (Address, Address) {
        self.linear(self.live.address())
    }

    fn linear(&self, arena: Address) -> (Address, Address) {
        let at = |element| arena.offset::<f32>(element);
        (at(self.layout.linear_weight), at(self.layout.linear_bias))
    }

    fn arena(&self, set: WeightSet) -> Result<&Buffer> {
        match set {
            WeightSet::Live => Ok(&self.live),
            WeightSet::Average => {
                self.average.as_ref().ok_or_else(|| Error::Invalid("no moving average on the device".into()))
            }
            WeightSet::Momentum => Ok(&self.velocity),
            WeightSet::Gradients => Ok(&self.gradients),
        }
    }
}
