//! Last-layer gradients in factored form, and the algebra that the selection of samples does with them.
//!
//! The gradient of a loss with respect to the last layer is a sum of one or two outer products a sample, so sums and
//! inner products never need the `classes * (features + 1)` numbers of each. Everything is added up in f64, in a fixed order:
//! products of two f32 are exact there, and what is left of a residual late in a pursuit is small against what it began with. No
//! gradients, no rows: sums are 0. Formulas: methods of GRAD-MATCH (Killamsetty et al., ICML 2021) on the adversarial losses.

mod norms;
mod products;
mod sum;

pub use norms::{RowNorms, RowNormsParams, row_norms};
pub use products::{GradientProducts, StepLogits, StepLogitsParams, gradient_products, step_logits};
pub use sum::{GradientSum, gradient_sum, gradient_sum_workspace};

use std::ops::Range;

use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::cuda::driver::Address;
use crate::cuda::launch::{F32, require};
use crate::engine::{Error, Operands, Result, Tensor};
use crate::model::ResNet;

/// Gradients with respect to weight and bias of the last layer, one a sample:
/// `g_i = sum over the terms of dz_i (x) [h_i, 1]`.
///
/// As one vector a gradient has `classes x (features + 1)` numbers: row c holds the weight's row c, then the bias c.
#[derive(Clone, Debug)]
pub struct LastLayerGradients {
    /// One for a loss of the adversarial logits; two, clean then adversarial, for a loss of both.
    pub terms: Vec<Term>,
    /// Samples.
    pub len: usize,
}

/// One outer product a sample.
#[derive(Clone, Debug)]
pub struct Term {
    /// `len x classes`: the derivative dz of a sample's loss by its logits.
    pub logit_gradient: Tensor<f32>,
    /// `len x features`: the features h behind those logits.
    pub features: Tensor<f32>,
}

impl LastLayerGradients {
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Samples `range`: the same memory, narrowed.
    ///
    /// # Panics
    /// If the range does not lie inside.
    pub fn rows(&self, range: Range<usize>) -> Self {
        let part = |tensor: &Tensor<f32>| tensor.rows(range.clone(), tensor.len() / self.len.max(1));
        let terms = self.terms.iter();
        let terms = terms
            .map(|term| Term { logit_gradient: part(&term.logit_gradient), features: part(&term.features) });
        Self { terms: terms.collect(), len: range.len() }
    }
}

/// Numbers of a gradient as one vector.
fn vector_len(network: ResNet) -> usize {
    network.classes * (network.features() + 1)
}

impl LastLayerGradients {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        if !(1..=2).contains(&self.terms.len()) {
            return Err(Error::Invalid(format!(
                "last-layer gradients of {} terms, expected 1 or 2",
                self.terms.len()
            )));
        }
        count(self.len, "last-layer gradients")?;
        for term in &self.terms {
            operands.reads(&term.logit_gradient, self.len * operands.classes())?;
            operands.reads(&term.features, self.len * operands.network().features())?;
        }
        Ok(())
    }

    /// Calls `task` with the factors of all terms.
    fn with_factors<R>(&self, cpu: &Cpu, task: impl FnOnce(&[Factors]) -> R) -> Result<R> {
        let views = self.terms.iter();
        let views = views.map(|term| Ok((cpu.input(&term.logit_gradient)?, cpu.input(&term.features)?)));
        let views: Vec<_> = views.collect::<Result<_>>()?;
        let factors = views.iter();
        let factors = factors.map(|(logit_gradient, features)| Factors { logit_gradient, features });
        Ok(task(&factors.collect::<Vec<_>>()))
    }

    /// As the kernels read them.
    fn params(&self, cuda: &Cuda) -> Result<Gradients> {
        let mut params = Gradients {
            logit_gradient: [Address::NULL; 2],
            features: [Address::NULL; 2],
            len: self.len as u32,
            terms: self.terms.len() as u32,
            classes: cuda.classes() as u32,
            width: cuda.network().features() as u32,
        };
        for (at, term) in self.terms.iter().enumerate() {
            params.logit_gradient[at] = cuda.address(&term.logit_gradient)?;
            params.features[at] = cuda.address(&term.features)?;
        }
        Ok(params)
    }
}

/// A length as the kernels count.
fn count(len: usize, what: &str) -> Result<u32> {
    let limit = i32::MAX as usize;
    match u32::try_from(len) {
        Ok(count) if len <= limit => Ok(count),
        _ => Err(Error::Invalid(format!("{what}: {len} elements, expected {limit} at most"))),
    }
}

/// The factors of one term.
struct Factors<'a> {
    logit_gradient: &'a [f32],
    features: &'a [f32],
}

/// Numbers whose sums run side by side, so that the loop vectorises; their order is fixed.
const LANES: usize = 8;

/// `sum a_i b_i` in f64.
pub(crate) fn dot<A: Copy + Into<f64>, B: Copy + Into<f64>>(a: &[A], b: &[B]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 =
        a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(&a, &b)| a.into() * b.into()).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a.into() * b.into();
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// Features that a block of the sum takes; the width is a multiple of it.
const WARP_FEATURES: u32 = 128;
/// Classes that a block of the sum, of the products and of the step takes.
const TILE_CLASSES: u32 = 10;
/// Samples that a block of the products and of the step takes.
const TILE_SAMPLES: u32 = 64;

/// Gradients in factored form.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Gradients {
    /// f32, len x classes, a term each.
    pub logit_gradient: [Address; 2],
    /// f32, len x width on 16 bytes, a term each.
    pub features: [Address; 2],
    /// Samples.
    pub len: u32,
    /// 1 or 2.
    pub terms: u32,
    pub classes: u32,
    /// Features of a sample, a multiple of 128.
    pub width: u32,
}

impl Gradients {
    /// Bytes of all factors.
    fn bytes(&self) -> usize {
        self.terms as usize * (elements(self.len, self.classes) + elements(self.len, self.width)) * F32
    }

    /// Operations on every gradient with a vector of its shape: a multiply-add with each element of each term.
    fn flops(&self) -> usize {
        2 * self.terms as usize * self.len as usize * elements(self.classes, self.width + 1)
    }

    fn check(&self, kernel: &str) -> Result<()> {
        require((1..=2).contains(&self.terms), kernel, "terms: 1 or 2", self.terms)?;
        let features = &self.features[..self.terms as usize];
        features.iter().try_for_each(|features| check_features(kernel, *features, self.width))
    }
}

fn check_features(kernel: &str, features: Address, width: u32) -> Result<()> {
    let fits = width > 0 && width.is_multiple_of(WARP_FEATURES);
    require(fits, kernel, "features: a multiple of 128", width)?;
    let beside = (features.0 % 16) as u32;
    require(beside == 0, kernel, "features: rows that start on 16 bytes", beside)
}

/// Bytes of an f64.
const F64: usize = 8;

/// Elements of a matrix, and of the vector of a gradient: classes x (width + 1).
fn elements(rows: u32, columns: u32) -> usize {
    rows as usize * columns as usize
}
