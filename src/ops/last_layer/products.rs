//! Products of last-layer gradients and of features with one vector.

use rayon::prelude::*;

use super::{
    F64, Factors, Gradients, LastLayerGradients, TILE_CLASSES, TILE_SAMPLES, check_features, count, dot,
    elements, vector_len,
};
use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::cuda::driver::{Address, Driver};
use crate::cuda::launch::{Cost, F32, run};
use crate::engine::{Operands, Result, Tensor};
use crate::ops::Op;

/// `products[i] = <g_i, vector>`.
#[derive(Clone, Copy, Debug)]
pub struct GradientProducts<'a> {
    pub gradients: &'a LastLayerGradients,
    /// A gradient as one vector.
    pub vector: &'a Tensor<f64>,
    /// As many as there are gradients.
    pub products: &'a Tensor<f64>,
}

/// `moved = logits - rate * (features V^T + b)`: the logits after a step of the last layer along `vector = [V, b]`. `moved` may be
/// `logits`.
#[derive(Clone, Copy, Debug)]
pub struct StepLogits<'a> {
    /// `n x features`, for any n.
    pub features: &'a Tensor<f32>,
    /// A gradient as one vector.
    pub vector: &'a Tensor<f64>,
    pub rate: f64,
    /// `n x classes`.
    pub logits: &'a Tensor<f32>,
    pub moved: &'a Tensor<f32>,
}

impl Op for GradientProducts<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        self.gradients.check(operands)?;
        operands.reads(self.vector, vector_len(operands.network()))?;
        operands.writes(self.products, self.gradients.len)
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (classes, row) = (cpu.classes(), cpu.network().features() + 1);
        let vector = cpu.input(self.vector)?;
        let vector: &[f64] = &vector;
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
        let mut products = cpu.output(self.products)?;
        self.gradients.with_factors(cpu, |terms| {
            let products = products.par_iter_mut().enumerate();
            products.for_each(|(sample, product)| *product = of_sample(terms, sample));
        })
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let gradients = self.gradients.params(cuda)?;
        let (vector, products) = (cuda.address(self.vector)?, cuda.address(self.products)?);
        gradient_products(cuda.driver(), &gradients, vector, products)
    }
}

impl Op for StepLogits<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        let len = operands.rows_of(self.logits, operands.classes())?;
        count(len, self.logits.name())?;
        operands.reads(self.features, len * operands.network().features())?;
        operands.reads(self.vector, vector_len(operands.network()))?;
        operands.maps(self.logits, self.moved, self.logits.len())
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (classes, row) = (cpu.classes(), cpu.network().features() + 1);
        let (features, vector) = (cpu.input(self.features)?, cpu.input(self.vector)?);
        let (logits, mut moved) = (cpu.input(self.logits)?, cpu.output(self.moved)?);
        let (vector, rate): (&[f64], _) = (&vector, self.rate);
        let samples = logits.par_chunks_exact(classes).zip(features.par_chunks_exact(row - 1));
        moved.par_chunks_exact_mut(classes).zip(samples).for_each(|(moved, (logits, features))| {
            for ((moved, &logit), row) in moved.iter_mut().zip(logits).zip(vector.chunks_exact(row)) {
                let step = dot(features, &row[..features.len()]) + row[features.len()];
                *moved = (f64::from(logit) - rate * step) as f32;
            }
        });
        Ok(())
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let (classes, width) = (cuda.classes(), cuda.network().features());
        let params = StepLogitsParams {
            features: cuda.address(self.features)?,
            vector: cuda.address(self.vector)?,
            logits: cuda.address(self.logits)?,
            moved: cuda.address(self.moved)?,
            rate: self.rate,
            len: (self.logits.len() / classes) as u32,
            classes: classes as u32,
            width: width as u32,
            padding: 0,
        };
        step_logits(cuda.driver(), &params)
    }
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct GradientProductsParams {
    gradients: Gradients,
    vector: Address,
    products: Address,
}

/// `products[i] = <g_i, vector>`; `vector` is f64, classes x (width + 1).
pub fn gradient_products(
    driver: &dyn Driver,
    gradients: &Gradients,
    vector: Address,
    products: Address,
) -> Result<()> {
    let name = "gradient_products";
    gradients.check(name)?;
    let params = GradientProductsParams { gradients: *gradients, vector, products };
    let Gradients { len, classes, width, .. } = *gradients;
    let bytes = gradients.bytes() + (elements(classes, width + 1) + len as usize) * F64;
    let cost = Cost::new(gradients.flops(), bytes);
    run(driver, name, [len.div_ceil(TILE_SAMPLES), 1, 1], &params, cost)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct StepLogitsParams {
    /// f32, len x width on 16 bytes.
    pub features: Address,
    /// f64, classes x (width + 1).
    pub vector: Address,
    /// f32, len x classes.
    pub logits: Address,
    /// f32, len x classes; may be `logits`.
    pub moved: Address,
    pub rate: f64,
    pub len: u32,
    pub classes: u32,
    /// A multiple of 128.
    pub width: u32,
    pub padding: u32,
}

/// `moved = logits - rate (V h + b)`, `vector = [V, b]`.
pub fn step_logits(driver: &dyn Driver, params: &StepLogitsParams) -> Result<()> {
    let name = "step_logits";
    check_features(name, params.features, params.width)?;
    let grid = [params.len.div_ceil(TILE_SAMPLES), params.classes.div_ceil(TILE_CLASSES), 1];
    let (vector, logits) = (elements(params.classes, params.width + 1), elements(params.len, params.classes));
    let flops = 2 * params.len as usize * vector + 2 * logits;
    let bytes = (elements(params.len, params.width) + 2 * logits) * F32 + vector * F64;
    run(driver, name, grid, params, Cost::new(flops, bytes))
}
