//! Last-layer gradients on the CPU, in f64: each result by one task, each sum in the order of its terms.
//!
//! Checked by `tests/last_layer.rs`; the oracle of the kernels in `kernels/prune/`.

use rayon::prelude::*;

use super::engine::Reference;
use super::invalid;
use super::memory::expect_len;
use crate::engine::{LastLayer, LastLayerGradients, Pass, Result, Tensor};

/// The factors of one term.
struct Factors<'a> {
    logit_gradient: &'a [f32],
    features: &'a [f32],
}

/// Numbers whose sums run side by side, so that the loop vectorises; their order is fixed.
const LANES: usize = 8;

/// `sum a_i b_i` in f64.
fn dot<A: Copy + Into<f64>, B: Copy + Into<f64>>(a: &[A], b: &[B]) -> f64 {
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

impl Reference {
    fn classes(&self) -> usize {
        self.network.classes
    }

    /// Numbers of a gradient's row: features and bias.
    fn row(&self) -> usize {
        self.network.features() + 1
    }

    fn check(&self, gradients: &LastLayerGradients) -> Result<()> {
        if !(1..=2).contains(&gradients.terms.len()) {
            return invalid(format!(
                "last-layer gradients of {} terms, expected 1 or 2",
                gradients.terms.len()
            ));
        }
        for term in &gradients.terms {
            expect_len(&term.logit_gradient, gradients.len * self.classes())?;
            expect_len(&term.features, gradients.len * self.network.features())?;
        }
        Ok(())
    }

    /// Calls `task` with the factors of all terms.
    fn with_factors<R>(
        &self,
        gradients: &LastLayerGradients,
        task: impl FnOnce(&[Factors]) -> R,
    ) -> Result<R> {
        self.check(gradients)?;
        let views = gradients
            .terms
            .iter()
            .map(|term| Ok((self.heap.view(&term.logit_gradient)?, self.heap.view(&term.features)?)));
        let views: Vec<_> = views.collect::<Result<_>>()?;
        let factors = views.iter();
        let factors = factors.map(|(logit_gradient, features)| Factors { logit_gradient, features });
        Ok(task(&factors.collect::<Vec<_>>()))
    }
}

impl LastLayer for Reference {
    fn features(&mut self, pass: Pass, features: &Tensor<f32>) -> Result<()> {
        let batch = match pass {
            Pass::Eval => self.eval_batch,
            Pass::Train { slot } => self.train_batch.get(slot).copied().flatten(),
        };
        let Some(batch) = batch else {
            return invalid(format!("{pass:?}: features without a forward pass on the present weights"));
        };
        expect_len(features, batch * self.network.features())?;
        let kept = match pass {
            Pass::Eval => self.eval.features(),
            Pass::Train { slot } => self.train.features(slot),
        };
        self.heap.view_mut(features)?.copy_from_slice(kept);
        Ok(())
    }

    fn gradient_sum(
        &mut self,
        gradients: &LastLayerGradients,
        weights: Option<&Tensor<f64>>,
        sum: &Tensor<f64>,
    ) -> Result<()> {
        let (classes, row, len) = (self.classes(), self.row(), gradients.len);
        expect_len(sum, classes * row)?;
        let weights = match weights {
            Some(weights) => {
                expect_len(weights, len)?;
                self.heap.copy(weights)?
            }
            None => vec![1.0; len],
        };
        let total = self.with_factors(gradients, |terms| {
            let mut total = vec![0.0; classes * row];
            total.par_chunks_exact_mut(row).enumerate().for_each(|(class, total)| {
                for term in terms {
                    let samples = term.logit_gradient.chunks_exact(classes);
                    let samples = samples.zip(term.features.chunks_exact(row - 1)).zip(&weights);
                    for ((gradient, features), weight) in samples {
                        let factor = weight * f64::from(gradient[class]);
                        let (bias, sums) = total.split_last_mut().expect("a row holds the bias at least");
                        *bias += factor;
                        for (sum, &feature) in sums.iter_mut().zip(features) {
                            *sum += factor * f64::from(feature);
                        }
                    }
                }
            });
            total
        })?;
        self.heap.view_mut(sum)?.copy_from_slice(&total);
        Ok(())
    }

    fn gradient_products(
        &mut self,
        gradients: &LastLayerGradients,
        vector: &Tensor<f64>,
        products: &Tensor<f64>,
    ) -> Result<()> {
        let (classes, row) = (self.classes(), self.row());
        expect_len(vector, classes * row)?;
        expect_len(products, gradients.len)?;
        let vector = self.heap.copy(vector)?;
        let of_sample = |terms: &[Factors], sample: usize| -> f64 {
            let of_term = |term: &Factors| -> f64 {
                let features = &term.features[sample * (row - 1)..][..row - 1];
                let rows =
                    term.logit_gradient[sample * classes..][..classes].iter().zip(vector.chunks_exact(row));
                rows.map(|(&factor, row)| {
                    f64::from(factor) * (dot(features, &row[..features.len()]) + row[features.len()])
                })
                .sum()
            };
            terms.iter().map(of_term).sum()
        };
        let all = self.with_factors(gradients, |terms| {
            (0..gradients.len).into_par_iter().map(|sample| of_sample(terms, sample)).collect::<Vec<_>>()
        })?;
        self.heap.view_mut(products)?.copy_from_slice(&all);
        Ok(())
    }

    fn gradient_column(
        &mut self,
        gradients: &LastLayerGradients,
        sample: usize,
        column: &Tensor<f64>,
    ) -> Result<()> {
        expect_len(column, gradients.len)?;
        if sample >= gradients.len {
            return invalid(format!("gradient {sample} of {}", gradients.len));
        }
        let (classes, features) = (self.classes(), self.network.features());
        let all = self.with_factors(gradients, |terms| {
            (0..gradients.len)
                .into_par_iter()
                .map(|other| inner_product(terms, classes, features, other, sample))
                .collect::<Vec<_>>()
        })?;
        self.heap.view_mut(column)?.copy_from_slice(&all);
        Ok(())
    }

    fn gradient_squares(&mut self, gradients: &LastLayerGradients, squares: &Tensor<f64>) -> Result<()> {
        expect_len(squares, gradients.len)?;
        let (classes, features) = (self.classes(), self.network.features());
        let all = self.with_factors(gradients, |terms| {
            (0..gradients.len)
                .into_par_iter()
                .map(|sample| inner_product(terms, classes, features, sample, sample))
                .collect::<Vec<_>>()
        })?;
        self.heap.view_mut(squares)?.copy_from_slice(&all);
        Ok(())
    }

    fn step_logits(
        &mut self,
        features: &Tensor<f32>,
        vector: &Tensor<f64>,
        rate: f64,
        logits: &Tensor<f32>,
        moved: &Tensor<f32>,
    ) -> Result<()> {
        let (classes, row) = (self.classes(), self.row());
        let len = logits.len() / classes;
        expect_len(logits, len * classes)?;
        expect_len(moved, logits.len())?;
        expect_len(features, len * (row - 1))?;
        expect_len(vector, classes * row)?;
        let (vector, logits) = (self.heap.copy(vector)?, self.heap.copy(logits)?);
        let features = self.heap.view(features)?;
        let mut moved = self.heap.view_mut(moved)?;
        let samples = logits.par_chunks_exact(classes).zip(features.par_chunks_exact(row - 1));
        moved.par_chunks_exact_mut(classes).zip(samples).for_each(|(moved, (logits, features))| {
            for ((moved, &logit), row) in moved.iter_mut().zip(logits).zip(vector.chunks_exact(row)) {
                let step = dot(features, &row[..features.len()]) + row[features.len()];
                *moved = (f64::from(logit) - rate * step) as f32;
            }
        });
        Ok(())
    }

    fn row_products(
        &mut self,
        rows: &Tensor<f64>,
        vector: &Tensor<f64>,
        products: &Tensor<f64>,
    ) -> Result<()> {
        expect_len(rows, products.len() * vector.len())?;
        let vector = self.heap.copy(vector)?;
        let rows = self.heap.view(rows)?;
        let mut products = self.heap.view_mut(products)?;
        products.fill(0.0);
        let rows = rows.par_chunks_exact(vector.len().max(1));
        products.par_iter_mut().zip(rows).for_each(|(product, row)| *product = dot(row, &vector));
        Ok(())
    }

    fn subtract_rows(
        &mut self,
        rows: &Tensor<f64>,
        factors: &Tensor<f64>,
        from: &Tensor<f64>,
        to: &Tensor<f64>,
    ) -> Result<()> {
        /// Columns of a task: their part of `to` stays in the nearest cache.
        const COLUMNS: usize = 1024;
        let len = from.len();
        expect_len(to, len)?;
        expect_len(rows, factors.len() * len)?;
        let (factors, from) = (self.heap.copy(factors)?, self.heap.copy(from)?);
        let rows = self.heap.view(rows)?;
        let rows: &[f64] = &rows;
        let mut to = self.heap.view_mut(to)?;
        to.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, to)| {
            let range = chunk * COLUMNS..chunk * COLUMNS + to.len();
            to.copy_from_slice(&from[range.clone()]);
            for (row, factor) in rows.chunks_exact(len).zip(&factors) {
                for (to, value) in to.iter_mut().zip(&row[range.clone()]) {
                    *to -= factor * value;
                }
            }
        });
        Ok(())
    }

    fn row_norms(&mut self, values: &Tensor<f32>, row_len: usize, norms: &Tensor<f32>) -> Result<()> {
        if row_len == 0 {
            return invalid(format!("{}: rows of 0 elements, expected 1 at least", values.name()));
        }
        expect_len(values, norms.len() * row_len)?;
        let values = self.heap.view(values)?;
        let mut norms = self.heap.view_mut(norms)?;
        let rows = values.par_chunks_exact(row_len);
        norms.par_iter_mut().zip(rows).for_each(|(norm, row)| *norm = dot(row, row).sqrt() as f32);
        Ok(())
    }
}

/// `<g_a, g_b> = sum over the pairs of terms of (dz_a . dz_b) (h_a . h_b + 1)`.
fn inner_product(terms: &[Factors], classes: usize, features: usize, a: usize, b: usize) -> f64 {
    let mut sum = 0.0;
    for left in terms {
        for right in terms {
            let logits = dot(
                &left.logit_gradient[a * classes..][..classes],
                &right.logit_gradient[b * classes..][..classes],
            );
            let features =
                dot(&left.features[a * features..][..features], &right.features[b * features..][..features]);
            sum += logits * (features + 1.0);
        }
    }
    sum
}
