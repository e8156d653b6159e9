//! Gradients on their way back through the network, and the evaluation pass's activations on the way forward: both passes use them,
//! one at a time, and nothing is expected to survive between two calls.

use std::rc::Rc;

use super::driver::{Buffer, Driver};
use super::launch::{conv, norm};
use super::layout::{self, Layout};
use crate::engine::Result;
use crate::model::{Layer, Residual};

/// bf16 gradients the size of the widest activation, and f32 room for the partial results of reductions.
pub struct Scratch {
    /// Activations, or their gradients before the ReLU, by [`Layer::buffer`].
    layers: [Buffer; Layer::BUFFERS],
    /// Gradient of a convolution's own output, before its BatchNorm; or a shortcut's output.
    pub convolution: Buffer,
    /// Gradient through a strided shortcut: only pixels with even coordinates have one.
    pub compact: Buffer,
    /// Partial results of weight gradients and BatchNorm reductions.
    pub partials: Buffer,
    /// f32, three a channel for each set: a BatchNorm's backward pass as an affine map.
    pub coefficients: Buffer,
}

impl Scratch {
    /// For passes over `sets` sets of up to `max_batch` images.
    pub fn new(driver: &Rc<dyn Driver>, layout: &Layout, sets: usize, max_batch: usize) -> Result<Self> {
        let images = sets * max_batch;
        let widest = images * layout.largest_activation();
        let buffer = |name, bytes| Buffer::new(driver, name, bytes);
        let layer = || buffer("gradient of a layer", widest * 2);
        let shapes = |batch: usize| (0..layout.convs.len()).map(move |at| layout::shape(layout, at, batch));
        let compact = layout.layers.iter().filter_map(|layer| match layer.residual {
            Residual::Projection { conv, .. } => {
                let shape = layout::shape(layout, conv, images);
                Some(shape.output_rows() * shape.in_channels)
            }
            _ => None,
        });
        let partials = shapes(max_batch).zip(shapes(images)).map(|(set, all)| {
            let (rows, channels) = (set.output_rows() as u32, set.out_channels as u32);
            let backward = 2 * channels as usize * norm::backward_blocks(rows, channels) as usize;
            let norm = sets * conv::statistics_partials(&set).max(backward);
            conv::weight_gradient_workspace(&all).max(norm)
        });
        Ok(Self {
            layers: [layer()?, layer()?, layer()?],
            convolution: buffer("gradient of a convolution", widest * 2)?,
            compact: buffer("compact shortcut gradient", compact.max().unwrap_or(0) * 2)?,
            partials: buffer("partial sums", partials.max().unwrap_or(0) * 4)?,
            coefficients: buffer(
                "BatchNorm gradient coefficients",
                sets * layout.network.features() * 3 * 4,
            )?,
        })
    }

    /// The activation of a layer, or its gradient.
    pub fn layer(&self, layer: &Layer) -> &Buffer {
        &self.layers[layer.buffer]
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver::dry::DryDriver;
    use super::super::driver::host::HostDriver;
    use super::super::launch::conv::SetStatistics;
    use super::*;
    use crate::model::ResNet;
    use crate::model::layers::WIDTHS;

    #[test]
    fn partial_sums_of_every_batch_have_room() {
        // With wgmma and without.
        for driver in [DryDriver::open(), HostDriver::open()] {
            for (width, max_batch) in WIDTHS.into_iter().flat_map(|width| [(width, 128), (width, 1024)]) {
                let layout = Layout::new(ResNet::resnet18(width, 100));
                for sets in [1, 2] {
                    let scratch = Scratch::new(&DryDriver::open(), &layout, sets, max_batch).unwrap();
                    let room = scratch.partials.bytes() / 4;
                    for batch in 1..=max_batch {
                        for (at, slot) in layout.convs.iter().enumerate() {
                            let [set, all] = [1, sets].map(|of| layout::shape(&layout, at, of * batch));
                            let channels = set.out_channels;
                            let forward = sets * SetStatistics::new(&*driver, sets, &set).tiles;
                            let rows = set.output_rows() as u32;
                            let backward = sets * norm::backward_blocks(rows, channels as u32) as usize;
                            let norm = 2 * channels * forward.max(backward);
                            let needed = norm.max(conv::weight_gradient_workspace(&all));
                            let what = &slot.conv.name;
                            assert!(
                                needed <= room,
                                "{what}, width {width}, {sets} x {batch}: {needed}, {room}"
                            );
                        }
                    }
                }
            }
        }
    }
}
