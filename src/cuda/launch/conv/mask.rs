//! The ReLU masks between a forward convolution and the input gradient that reads them: one bit an element.

use super::wgmma::{self, Direction, plan::images_of_a_group};
use super::{ConvShape, Reduction};
use crate::cuda::driver::{Address, Driver};
use crate::engine::{Error, Result};

/// How the bits lie in memory: `MaskOrder` of `kernels/conv/wgmma/mask.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MaskOrder {
    /// Bit `c % 8` of byte `(pixel * channels + c) / 8`.
    Plain,
    /// As the threads of wgmma hold them, for whole groups of pixels. Only kernels on wgmma write it, and of those that read it only
    /// gradients of stride 1, whose tiles are the writer's.
    Fragments,
}

impl MaskOrder {
    /// The best one that both the convolution `writer` of an activation and the input gradient of `reader`, which takes it, know.
    pub fn between(driver: &dyn Driver, writer: &ConvShape, reader: &ConvShape) -> Self {
        // What serves whole sums serves split ones, so the order holds in every pass.
        let on_wgmma =
            |shape, direction| wgmma::product(driver, Reduction::Whole, shape, direction).is_some();
        let both = reader.stride == 1
            && on_wgmma(writer, Direction::Forward)
            && on_wgmma(reader, Direction::Gradient);
        if both { Self::Fragments } else { Self::Plain }
    }
}

/// A mask in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mask {
    pub address: Address,
    pub order: MaskOrder,
}

impl Mask {
    pub fn plain(address: Address) -> Self {
        Self { address, order: MaskOrder::Plain }
    }
}

/// The address of a mask for kernels that know plain ones alone.
pub(super) fn plain(shape: &ConvShape, mask: Mask) -> Result<Address> {
    match mask.order {
        MaskOrder::Plain => Ok(mask.address),
        MaskOrder::Fragments => {
            Err(Error::Invalid(format!("convolution {shape:?}: a mask in fragments, expected a plain one")))
        }
    }
}

/// Bytes of the mask of an output in either order.
pub fn mask_bytes(shape: &ConvShape) -> usize {
    let images = shape.batch.next_multiple_of(images_of_a_group(shape.out_side()));
    ConvShape { batch: images, ..*shape }.output_len() / 8
}
