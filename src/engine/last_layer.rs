//! Last-layer gradients in factored form, and the algebra that the selection of samples does with them.
//!
//! The gradient of a loss with respect to the last layer is a sum of one or two outer products a sample, so sums and
//! inner products never need the `classes * (features + 1)` numbers of each. Everything is added up in f64: products of
//! two f32 are exact there, and what is left of a residual late in a pursuit is small beside what it began with.
//! Formulas: methods of GRAD-MATCH (Killamsetty et al., ICML 2021) on the adversarial losses. Called by `prune`; checked
//! by `tests/last_layer.rs` against explicit gradients.

use std::ops::Range;

use super::{Pass, Result, Tensor};

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

/// The operations on last-layer gradients. `vector` and `sum` are gradients as one vector, f64.
///
/// Sums have a fixed order. An output overlaps no input, except that `moved` may be `logits` and `to` may be `from`; explicit
/// rows, features and values lie in other storage than what is made of them. No gradients, no rows: sums are 0.
pub trait LastLayer {
    /// The features h of the pass's last forward, `batch x features`: what the last layer saw.
    fn features(&mut self, pass: Pass, features: &Tensor<f32>) -> Result<()>;

    /// `sum = sum_i w_i g_i`, w = 1 where absent.
    fn gradient_sum(
        &mut self,
        gradients: &LastLayerGradients,
        weights: Option<&Tensor<f64>>,
        sum: &Tensor<f64>,
    ) -> Result<()>;

    /// `products[i] = <g_i, vector>`.
    fn gradient_products(
        &mut self,
        gradients: &LastLayerGradients,
        vector: &Tensor<f64>,
        products: &Tensor<f64>,
    ) -> Result<()>;

    /// `column[i] = <g_i, g_sample>`, a column of the Gram matrix: for each pair of terms `(dz . dz') (h . h' + 1)`.
    fn gradient_column(
        &mut self,
        gradients: &LastLayerGradients,
        sample: usize,
        column: &Tensor<f64>,
    ) -> Result<()>;

    /// `squares[i] = <g_i, g_i>`.
    fn gradient_squares(&mut self, gradients: &LastLayerGradients, squares: &Tensor<f64>) -> Result<()>;

    /// `moved = logits - rate * (features V^T + b)`: the logits behind a step of the last layer along `vector = [V, b]`.
    /// `features` is `n x features`, `logits` and `moved` are `n x classes`, for any n.
    fn step_logits(
        &mut self,
        features: &Tensor<f32>,
        vector: &Tensor<f64>,
        rate: f64,
        logits: &Tensor<f32>,
        moved: &Tensor<f32>,
    ) -> Result<()>;

    /// `products[i] = <row_i, vector>` for explicit rows of `vector.len()` numbers.
    fn row_products(
        &mut self,
        rows: &Tensor<f64>,
        vector: &Tensor<f64>,
        products: &Tensor<f64>,
    ) -> Result<()>;

    /// `to = from - sum_s factors[s] row_s`, rows of `from.len()` numbers.
    fn subtract_rows(
        &mut self,
        rows: &Tensor<f64>,
        factors: &Tensor<f64>,
        from: &Tensor<f64>,
        to: &Tensor<f64>,
    ) -> Result<()>;

    /// The Euclidean norm of each row of `row_len` values.
    fn row_norms(&mut self, values: &Tensor<f32>, row_len: usize, norms: &Tensor<f32>) -> Result<()>;
}
