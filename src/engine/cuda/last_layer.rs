//! Last-layer gradients by the kernels of `kernels/prune/`.

use super::engine::Cuda;
use crate::engine::{Error, LastLayer, LastLayerGradients, Pass, Result, Tensor};

fn missing<T>() -> Result<T> {
    Err(Error::Invalid("last-layer gradients have no kernels yet: use --device cpu".into()))
}

impl LastLayer for Cuda {
    fn features(&mut self, _: Pass, _: &Tensor<f32>) -> Result<()> {
        missing()
    }
    fn gradient_sum(
        &mut self,
        _: &LastLayerGradients,
        _: Option<&Tensor<f64>>,
        _: &Tensor<f64>,
    ) -> Result<()> {
        missing()
    }
    fn gradient_products(&mut self, _: &LastLayerGradients, _: &Tensor<f64>, _: &Tensor<f64>) -> Result<()> {
        missing()
    }
    fn gradient_column(&mut self, _: &LastLayerGradients, _: usize, _: &Tensor<f64>) -> Result<()> {
        missing()
    }
    fn gradient_squares(&mut self, _: &LastLayerGradients, _: &Tensor<f64>) -> Result<()> {
        missing()
    }
    fn step_logits(
        &mut self,
        _: &Tensor<f32>,
        _: &Tensor<f64>,
        _: f64,
        _: &Tensor<f32>,
        _: &Tensor<f32>,
    ) -> Result<()> {
        missing()
    }
    fn row_products(&mut self, _: &Tensor<f64>, _: &Tensor<f64>, _: &Tensor<f64>) -> Result<()> {
        missing()
    }
    fn subtract_rows(
        &mut self,
        _: &Tensor<f64>,
        _: &Tensor<f64>,
        _: &Tensor<f64>,
        _: &Tensor<f64>,
    ) -> Result<()> {
        missing()
    }
    fn row_norms(&mut self, _: &Tensor<f32>, _: usize, _: &Tensor<f32>) -> Result<()> {
        missing()
    }
}
