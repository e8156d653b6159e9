//! The optimizer step: SGD with momentum and weight decay over the flat arenas, and the moving average of the weights.

use rayon::prelude::*;

use crate::cpu::Model;
use crate::cuda::driver::{Address, Driver};
use crate::cuda::launch::{BF16, Cost, F32, run_flat};
use crate::cuda::layout::{Layout, STEM_CHANNELS};
use crate::engine::{Result, Tensor};

/// SGD as in PyTorch: `g += weight_decay * w; v = momentum * v + g; w -= learning_rate * v`, on every parameter, the velocity from
/// zero; or with [`Sgd::nesterov`] `w -= learning_rate * (g + momentum * v)`.
#[derive(Clone, Copy, Debug)]
pub struct Sgd<'a> {
    pub learning_rate: f32,
    pub momentum: f32,
    pub weight_decay: f32,
    pub nesterov: bool,
    /// `average <- d * average + (1 - d) * live` after the step, parameters and running statistics alike; where
    /// there is no average yet, the live weights after the step are the first, as in PyTorch's `AveragedModel`.
    pub average_decay: Option<f32>,
    /// What was added to the weights before the gradients were taken, of every trainable element in the engine's own order: taken
    /// off them after the step, before the average.
    pub displacement: Option<&'a Tensor<f32>>,
}

impl Sgd<'_> {
    /// Every number 0 and no option.
    pub const ZERO: Self = Self {
        learning_rate: 0.0,
        momentum: 0.0,
        weight_decay: 0.0,
        nesterov: false,
        average_decay: None,
        displacement: None,
    };

    pub(crate) fn cpu(&self, model: &mut Model, gradients: &[f32], displacement: Option<&[f32]>) {
        let Self { learning_rate, momentum, weight_decay, nesterov, average_decay, .. } = *self;
        let Model { live, velocity, average } = model;
        live[..velocity.len()]
            .par_chunks_mut(CHUNK)
            .zip(velocity.par_chunks_mut(CHUNK))
            .zip(gradients.par_chunks(CHUNK))
            .for_each(|((weights, velocity), gradients)| {
                for ((w, v), g) in weights.iter_mut().zip(velocity).zip(gradients) {
                    let g = g + weight_decay * *w;
                    *v = momentum * *v + g;
                    *w -= learning_rate * if nesterov { g + momentum * *v } else { *v };
                }
            });
        if let Some(displacement) = displacement {
            let weights = live[..velocity.len()].par_chunks_mut(CHUNK).zip(displacement.par_chunks(CHUNK));
            weights.for_each(|(weights, displacement)| {
                weights.iter_mut().zip(displacement).for_each(|(w, moved)| *w -= moved);
            });
        }
        let Some(decay) = average_decay else { return };
        match average {
            None => *average = Some(live.clone()),
            Some(average) => blend(decay, average, live),
        }
    }

    /// Where there is no average yet, none is kept.
    pub(crate) fn cuda(&self, driver: &dyn Driver, arenas: SgdArenas) -> Result<()> {
        let params = SgdParams {
            arenas,
            learning_rate: self.learning_rate,
            momentum: self.momentum,
            weight_decay: self.weight_decay,
            average_decay: self.average_decay.unwrap_or(0.0),
            nesterov: self.nesterov.into(),
            padding: 0,
        };
        sgd_step(driver, &params)
    }
}

/// Elements of one task on the CPU.
const CHUNK: usize = 1 << 14;

/// `average <- decay * average + (1 - decay) * live`.
fn blend(decay: f32, average: &mut [f32], live: &[f32]) {
    average.par_chunks_mut(CHUNK).zip(live.par_chunks(CHUNK)).for_each(|(average, live)| {
        for (average, live) in average.iter_mut().zip(live) {
            *average = decay * *average + (1.0 - decay) * live;
        }
    });
}

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
pub struct SgdArenas {
    pub weights: Address,
    /// Trainable elements.
    pub velocity: Address,
    /// Trainable elements.
    pub gradients: Address,
    /// Null where none is kept.
    pub average: Address,
    /// Trainable elements, without room; null where the weights were not moved.
    pub displacement: Address,
    /// The bf16 arena of the train pass.
    pub copies: Address,
    pub extents: ArenaExtents,
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct SgdParams {
    pub arenas: SgdArenas,
    pub learning_rate: f32,
    pub momentum: f32,
    pub weight_decay: f32,
    pub average_decay: f32,
    pub nesterov: u32,
    pub padding: u32,
}

/// One step on all parameters, their bf16 copies and the moving average.
pub fn sgd_step(driver: &dyn Driver, params: &SgdParams) -> Result<()> {
    let SgdArenas { extents, average, displacement, .. } = params.arenas;
    let (trainable, total) = (extents.trainable as usize, extents.total as usize);
    // Weights and velocity are read and written, the gradient is read; the average, of all, is read and written.
    let mut cost = Cost::new(6 * trainable, 5 * trainable * F32 + extents.copies() * BF16);
    if params.nesterov != 0 {
        cost += Cost::new(2 * trainable, 0);
    }
    if displacement != Address::NULL {
        cost += Cost::new(trainable, trainable * F32);
    }
    if average != Address::NULL {
        cost += Cost::new(3 * total, (2 * total + (total - trainable)) * F32);
    }
    run_flat(driver, "sgd_step", extents.total.div_ceil(4), params, cost)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct CopiesParams {
    weights: Address,
    copies: Address,
    extents: ArenaExtents,
}

/// The bf16 copies alone, after the weights changed in another way.
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
