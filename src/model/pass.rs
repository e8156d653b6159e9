//! One forward and one backward pass over the layers, for every device, in evaluation and in training.

use std::ops::Range;

use super::{Layer, Residual};

/// What a forward pass is made of, in the order of the calls. Activations are told apart by the indices of their layers.
pub trait Forward {
    type Error;

    /// The layer's convolution, up to its BatchNorm.
    fn convolution(&mut self, layer: &Layer) -> Result<(), Self::Error>;
    /// Convolution `conv` of activation `input`, up to its BatchNorm: the projection that `layer` adds.
    fn projection(&mut self, layer: &Layer, conv: usize, input: usize) -> Result<(), Self::Error>;
    /// BatchNorm, residual and ReLU: the layer's activation.
    fn activation(&mut self, layer: &Layer) -> Result<(), Self::Error>;
    /// From the last activation to the logits.
    fn head(&mut self) -> Result<(), Self::Error>;
}

/// What a backward pass is made of, in the order of the calls. The gradient of a layer is that of its sum before the ReLU.
pub trait Backward {
    type Error;

    /// From the logits to the gradient of the last layer.
    fn head(&mut self) -> Result<(), Self::Error>;
    /// From the gradient of `layer` to that of the output of `conv`, its own convolution or its projection, which reads `input`: an
    /// activation, or the images. Parameter gradients of both convolution and BatchNorm.
    fn normalisation(&mut self, layer: &Layer, conv: usize, input: Option<usize>) -> Result<(), Self::Error>;
    /// From the layer's convolution to the gradient of layer `input`; adds that of the residual which begins there
    /// ([`Layer::skip`]).
    fn input_gradient(&mut self, layer: &Layer, input: usize) -> Result<(), Self::Error>;
    /// From the layer's projection `conv` to the gradient of the residual that begins at layer `input`.
    fn projection_gradient(&mut self, layer: &Layer, conv: usize, input: usize) -> Result<(), Self::Error>;
    /// From the convolution of the first layer to the gradient of the images.
    fn image_gradient(&mut self) -> Result<(), Self::Error>;
}

/// Forward over some of the layers, and where the last is one of them the head.
pub fn forward<P: Forward>(layers: &[Layer], range: Range<usize>, pass: &mut P) -> Result<(), P::Error> {
    for layer in &layers[range.clone()] {
        pass.convolution(layer)?;
        if let Residual::Projection { conv, input } = layer.residual {
            pass.projection(layer, conv, input)?;
        }
        pass.activation(layer)?;
    }
    if range.end == layers.len() { pass.head() } else { Ok(()) }
}

/// Backward over some of the layers, the last first, and where the last is one of them the head before it.
pub fn backward<P: Backward>(layers: &[Layer], range: Range<usize>, pass: &mut P) -> Result<(), P::Error> {
    if range.end == layers.len() {
        pass.head()?;
    }
    for layer in layers[range].iter().rev() {
        pass.normalisation(layer, layer.conv, layer.input)?;
        match layer.input {
            Some(input) => pass.input_gradient(layer, input)?,
            None => pass.image_gradient()?,
        }
        if let Residual::Projection { conv, input } = layer.residual {
            pass.normalisation(layer, conv, Some(input))?;
            pass.projection_gradient(layer, conv, input)?;
        }
    }
    Ok(())
}
