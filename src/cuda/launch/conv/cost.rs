//! FLOPs and bytes of the convolutions.

use super::{ConvShape, ForwardEpilogue, ImageEpilogue, InputGradientEpilogue, statistics_partials};
use crate::cuda::launch::{BF16, Cost, F32};

/// Multiply-adds of one pass over a batch, times two. The stem counts its three channels, not the eight stored ones.
pub fn flops(shape: &ConvShape) -> u64 {
    let channels = if shape.is_stem() { 3 } else { shape.in_channels };
    2 * (shape.output_len() * shape.taps() * channels) as u64
}

pub fn forward_cost(shape: &ConvShape, epilogue: &ForwardEpilogue) -> Cost {
    let output = shape.output_len();
    let ending = match epilogue {
        ForwardEpilogue::Relu { residual, .. } => {
            output / 8 + shape.out_channels * F32 + if residual.is_some() { output * BF16 } else { 0 }
        }
        ForwardEpilogue::Bias { .. } => shape.out_channels * F32,
        ForwardEpilogue::Statistics { .. } => statistics_partials(shape) * F32,
    };
    let bytes = (shape.input_len() + shape.weight_len() + output) * BF16 + ending;
    Cost { flops: flops(shape), bytes: bytes as u64 }
}

pub fn input_gradient_cost(shape: &ConvShape, epilogue: &InputGradientEpilogue) -> Cost {
    let compact = shape.output_rows() * shape.in_channels;
    let written = if shape.kernel == 1 { compact } else { shape.input_len() };
    let residual = if epilogue.residual.is_some() { compact * BF16 } else { 0 };
    let mask = if epilogue.mask.is_some() { written / 8 } else { 0 };
    let bytes = (shape.output_len() + shape.weight_len() + written) * BF16 + residual + mask;
    Cost { flops: flops(shape), bytes: bytes as u64 }
}

pub fn image_gradient_cost(shape: &ConvShape, epilogue: &ImageEpilogue) -> Cost {
    let image = shape.input_rows() * 3 * F32;
    let ending = match epilogue {
        ImageEpilogue::Gradient { .. } => image,
        // Reads the clean and the perturbed image, writes the perturbed one and its packed form.
        ImageEpilogue::SignStep { .. } => 3 * image + shape.input_len() * BF16,
    };
    let bytes = (shape.output_len() + shape.weight_len()) * BF16 + ending;
    Cost { flops: flops(shape), bytes: bytes as u64 }
}

/// The products, and the partial sums of `parts` parts of the pixels.
pub fn weight_gradient_cost(shape: &ConvShape, parts: usize) -> Cost {
    let bytes = (shape.input_len() + shape.output_len()) * BF16 + parts * shape.weight_len() * F32;
    Cost { flops: flops(shape), bytes: bytes as u64 }
}

/// The sum of the parts.
pub fn weight_reduce_cost(shape: &ConvShape, parts: usize, accumulate: bool) -> Cost {
    let gradient = shape.out_channels * shape.taps() * if shape.is_stem() { 3 } else { shape.in_channels };
    let written = gradient * if accumulate { 2 } else { 1 };
    let summed = parts * shape.weight_len();
    Cost::new(summed - gradient + if accumulate { gradient } else { 0 }, (summed + written) * F32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::driver::Address;
    use crate::model::ResNet;

    #[test]
    fn a_forward_pass_costs_what_the_layer_table_says() {
        let network = ResNet::resnet18(64, 10);
        let epilogue = ForwardEpilogue::Bias { bias: Address::NULL };
        for conv in network.convs() {
            let cost = forward_cost(&ConvShape::new(&conv, 3), &epilogue);
            assert_eq!(cost.flops, 2 * 3 * conv.multiply_adds() as u64, "{}", conv.name);
        }
    }
}
