//! Launch of the stem's input gradient and of the attack step that ends in it: `kernels/conv/image_gradient.cu`.

use bytemuck::Zeroable;

use super::params::ImageGradientParams;
use super::{ConvShape, Tile, image_gradient_cost};
use crate::cuda::driver::{Address, Driver, Kernel, launch};
use crate::engine::{Error, Result, SignStep};

/// What becomes of the gradient with respect to the image; images are f32, NHWC, 3 channels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ImageEpilogue {
    /// Store it, f32, of the image's shape.
    Gradient { gradient: Address },
    /// Move `perturbed` by its sign, `perturbed <- clip01(clamp(perturbed + step_size * sign, images -+ epsilon))` with
    /// sign(0) = 0, and write the result as the stem's next input to `packed` (8 bf16 channels: hi, lo, padding).
    SignStep { step: SignStep, images: Address, perturbed: Address, packed: Address },
}

impl ImageEpilogue {
    /// The same for the images of a batch that follow those of `before`, a shape of the stem.
    pub fn after(&self, before: &ConvShape) -> Self {
        let image = |address: Address| address.offset::<f32>(before.input_rows() * 3);
        match *self {
            Self::Gradient { gradient } => Self::Gradient { gradient: image(gradient) },
            Self::SignStep { step, images, perturbed, packed } => Self::SignStep {
                step,
                images: image(images),
                perturbed: image(perturbed),
                packed: packed.offset::<u16>(before.input_len()),
            },
        }
    }
}

/// Gradient of the stem's convolution with respect to the image; `weights` are the stem's, of 8 input channels.
pub fn image_gradient(
    driver: &dyn Driver,
    shape: &ConvShape,
    output_gradient: Address,
    weights: Address,
    epilogue: &ImageEpilogue,
) -> Result<()> {
    shape.check()?;
    if !shape.is_stem() || shape.stride != 1 {
        return Err(Error::Invalid(format!("image gradient of {shape:?}: expected the stem")));
    }
    let mut params =
        ImageGradientParams { output_gradient, weights, gather: shape.output_gather(), ..Zeroable::zeroed() };
    let kernel = match *epilogue {
        ImageEpilogue::Gradient { gradient } => {
            params.gradient = gradient;
            Kernel::named("conv_image_gradient_mma_128x16")?
        }
        ImageEpilogue::SignStep { step, images, perturbed, packed } => {
            (params.images, params.perturbed, params.packed) = (images, perturbed, packed);
            (params.step_size, params.epsilon) = (step.step_size, step.epsilon);
            Kernel::named("conv_image_sign_step_mma_128x16")?
        }
    };
    let blocks = shape.output_rows().div_ceil(Tile::ROWS) as u32;
    launch(driver, &kernel, [blocks, 1, 1], &params, image_gradient_cost(shape, epilogue))
}
