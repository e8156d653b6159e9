//! Inner products of last-layer gradients with each other.

use rayon::prelude::*;

use super::{F64, Factors, Gradients, LastLayerGradients, dot, elements};
use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::cuda::driver::{Address, Driver};
use crate::cuda::launch::{Cost, require, run};
use crate::engine::{Error, Operands, Result, Tensor};
use crate::ops::Op;

/// Samples that a block takes.
const INNER_SAMPLES: u32 = 32;

/// `column[i] = <g_i, g_sample>`, a column of the Gram matrix: for each pair of terms `(dz . dz') (h . h' + 1)`.
#[derive(Clone, Copy, Debug)]
pub struct GradientColumn<'a> {
    pub gradients: &'a LastLayerGradients,
    pub sample: usize,
    /// As many as there are gradients.
    pub column: &'a Tensor<f64>,
}

/// `squares[i] = <g_i, g_i>`.
#[derive(Clone, Copy, Debug)]
pub struct GradientSquares<'a> {
    pub gradients: &'a LastLayerGradients,
    /// As many as there are gradients.
    pub squares: &'a Tensor<f64>,
}

impl Op for GradientColumn<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        if self.sample >= self.gradients.len {
            return Err(Error::Invalid(format!("gradient {} of {}", self.sample, self.gradients.len)));
        }
        self.gradients.check(operands)?;
        operands.writes(self.column, self.gradients.len)
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let column = self.sample;
        fill(cpu, self.gradients, self.column, |sample| (sample, column))
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let (gradients, column) = (self.gradients.params(cuda)?, cuda.address(self.column)?);
        gradient_column(cuda.driver(), &gradients, self.sample as u32, column)
    }
}

impl Op for GradientSquares<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        self.gradients.check(operands)?;
        operands.writes(self.squares, self.gradients.len)
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        fill(cpu, self.gradients, self.squares, |sample| (sample, sample))
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let (gradients, squares) = (self.gradients.params(cuda)?, cuda.address(self.squares)?);
        gradient_squares(cuda.driver(), &gradients, squares)
    }
}

/// Writes the inner product of a pair of gradients for each sample.
fn fill(
    cpu: &Cpu,
    gradients: &LastLayerGradients,
    products: &Tensor<f64>,
    pair: impl Fn(usize) -> (usize, usize) + Sync,
) -> Result<()> {
    let (classes, features) = (cpu.classes(), cpu.network().features());
    let mut products = cpu.output(products)?;
    gradients.with_factors(cpu, |terms| {
        products.par_iter_mut().enumerate().for_each(|(sample, product)| {
            let (a, b) = pair(sample);
            *product = inner_product(terms, classes, features, a, b);
        });
    })
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

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct InnerProductsParams {
    gradients: Gradients,
    products: Address,
    sample: u32,
    padding: u32,
}

fn inner_products(
    driver: &dyn Driver,
    names: [&str; 2],
    gradients: &Gradients,
    sample: u32,
    products: Address,
    pairs: u32,
) -> Result<()> {
    let name = names[usize::from(gradients.terms == 2)];
    gradients.check(name)?;
    let params = InnerProductsParams { gradients: *gradients, products, sample, padding: 0 };
    // A pair of terms is the product of two inner products: of logit gradients, and of features and a one.
    let Gradients { len, classes, width, .. } = *gradients;
    let flops = 2 * pairs as usize * elements(len, classes + width + 1);
    let cost = Cost::new(flops, gradients.bytes() + len as usize * F64);
    run(driver, name, [len.div_ceil(INNER_SAMPLES), 1, 1], &params, cost)
}

/// `column[i] = <g_i, g_sample>`, f64.
pub fn gradient_column(
    driver: &dyn Driver,
    gradients: &Gradients,
    sample: u32,
    column: Address,
) -> Result<()> {
    let names = ["gradient_column_one_term", "gradient_column_two_terms"];
    require(sample < gradients.len, names[0], "sample: one of the gradients", sample)?;
    inner_products(driver, names, gradients, sample, column, gradients.terms.pow(2))
}

/// `squares[i] = <g_i, g_i>`, f64.
pub fn gradient_squares(driver: &dyn Driver, gradients: &Gradients, squares: Address) -> Result<()> {
    let names = ["gradient_squares_one_term", "gradient_squares_two_terms"];
    let pairs = gradients.terms * (gradients.terms + 1) / 2;
    inner_products(driver, names, gradients, 0, squares, pairs)
}
