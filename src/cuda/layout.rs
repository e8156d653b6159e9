//! The network on the device: what the kernels are built for, and where its tensors lie in the bf16 arenas.
//!
//! The f32 arenas are those of [`Layout`], filters in the order K, R, S, C. The bf16 arenas (live copies and folded weights) hold the
//! convolution weights alone, at the same offsets but for the stem, which has [`STEM_CHANNELS`] input channels there.

use super::launch::conv::ConvShape;
use crate::engine::{Error, Result};
use crate::model::layers::WIDTHS;
use crate::model::{FilterOrder, ResNet};

pub use crate::model::Layout;

/// Channels of the stem's packed input: hi and lo bf16 parts of three channels, and two of padding.
pub const STEM_CHANNELS: usize = 8;
/// Filters as the kernels read them.
pub const ORDER: FilterOrder = FilterOrder::Krsc;

/// Refuses a network that the kernels are not built for.
pub fn check(network: ResNet) -> Result<()> {
    let ResNet { blocks, width, .. } = network;
    if !WIDTHS.contains(&width) {
        return Err(Error::Invalid(format!("width {width}: the kernels are built for widths {WIDTHS:?}")));
    }
    if blocks.contains(&0) {
        return Err(Error::Invalid(format!("blocks {blocks:?}: expected at least 1 in each stage")));
    }
    Ok(())
}

/// What the kernels are told of convolution `at`, for a batch of images.
pub fn shape(layout: &Layout, at: usize, batch: usize) -> ConvShape {
    ConvShape::new(&layout.convs[at].conv, batch)
}

/// Offset of convolution `at` in a bf16 arena, in elements.
pub fn packed_offset(layout: &Layout, at: usize) -> usize {
    layout.convs[at].weight + if at == 0 { 0 } else { padding(layout) }
}

/// Elements of a bf16 arena.
pub fn packed_len(layout: &Layout) -> usize {
    layout.convs[0].bn_weight + padding(layout)
}

/// Elements that the stem has more of in a bf16 arena.
fn padding(layout: &Layout) -> usize {
    shape(layout, 0, 1).weight_len() - layout.convs[0].conv.weight_len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_weights_are_dense_and_aligned() {
        for network in
            WIDTHS.map(|width| ResNet::resnet18(width, 10)).into_iter().chain([ResNet::resnet34(16, 10)])
        {
            let layout = Layout::new(network);
            let end = (0..layout.convs.len()).fold(0, |end, at| {
                // Vectors of 16 bytes.
                assert_eq!((packed_offset(&layout, at), end % 8), (end, 0));
                end + shape(&layout, at, 1).weight_len()
            });
            assert_eq!(packed_len(&layout), end);
        }
    }
}
