//! The train pass: batch statistics, forward and back to parameters and image.
//!
//! A convolution's epilogue leaves partial statistics of its output; the normalisation itself, with residual, ReLU and mask,
//! is one elementwise pass after it. On the way back every gradient that reaches a BatchNorm is already masked by the ReLU
//! that follows it.
//!
//! A pass may hold several sets of images, contiguous in every buffer: to all but BatchNorm, which keeps statistics
//! for each, they are one batch. Both ways are recorded and replayed ([`Graphs`]).

mod layers;

use std::rc::Rc;

use super::driver::nvtx::Range;
use super::driver::{Address, Buffer, Driver};
use super::graphs::Graphs;
use super::launch::attack;
use super::launch::conv::ImageEpilogue;
use super::layout;
use super::parameters::Parameters;
use super::scratch::Scratch;
use crate::engine::Result;
use crate::model::pass;
use layers::{TrainBackward, TrainForward, TrainLaunches};

/// What a backward pass computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BackwardRequest {
    /// Parameter gradients; `Some(true)` adds them to those already there.
    pub parameters: Option<bool>,
    /// The image's gradient or what is made of it.
    pub image: Option<ImageEpilogue>,
}

/// Everything that a recorded pass bakes in.
#[derive(Clone, Debug, PartialEq)]
pub struct PassKey {
    /// Which pass: where its packed images lie.
    pass: Address,
    batch: usize,
    /// Of each set the images and the logits of a forward pass, or the gradients of the logits.
    operands: Vec<Address>,
    /// What a backward pass computes.
    expected: Option<BackwardRequest>,
}

/// The activation of a layer, and which of its elements are positive.
struct Activation {
    values: Buffer,
    mask: Buffer,
}

impl Activation {
    fn new(driver: &Rc<dyn Driver>, elements: usize) -> Result<Self> {
        Ok(Self {
            values: Buffer::new(driver, "train activation", elements * 2)?,
            mask: Buffer::new(driver, "train mask", elements / 8)?,
        })
    }
}

/// Everything a backward pass needs from the forward pass of one batch, or of several.
pub struct TrainPass {
    driver: Rc<dyn Driver>,
    sets: usize,
    /// The stem's input: hi and lo bf16 parts of the image.
    packed: Buffer,
    /// Outputs of the convolutions, before BatchNorm.
    convolutions: Vec<Buffer>,
    /// For each convolution and set mean, 1/deviation, scale and shift of every channel.
    statistics: Buffer,
    /// One a layer.
    activations: Vec<Activation>,
    /// What the last layer saw in the last forward pass: f32, `sets x batch x features`.
    pub features: Buffer,
}

impl TrainPass {
    /// For `sets` sets of up to `max_batch` images.
    pub fn new(
        driver: &Rc<dyn Driver>,
        parameters: &Parameters,
        sets: usize,
        max_batch: usize,
    ) -> Result<Self> {
        let layout = &parameters.layout;
        let images = sets * max_batch;
        let buffer = |name, bytes| Buffer::new(driver, name, bytes);
        let elements = |at| layout::shape(layout, at, images).output_len();
        let activation = |layer| Activation::new(driver, images * layout.activation_len(layer));
        Ok(Self {
            packed: buffer("packed images", layout::shape(layout, 0, images).input_len() * 2)?,
            convolutions: (0..layout.convs.len())
                .map(|at| buffer("convolution output", elements(at) * 2))
                .collect::<Result<_>>()?,
            statistics: buffer("batch statistics", sets * layout.channels * 4 * 4)?,
            activations: (0..layout.layers.len()).map(activation).collect::<Result<_>>()?,
            features: buffer("train features", images * layout.network.features() * 4)?,
            driver: driver.clone(),
            sets,
        })
    }

    /// For each set the logits (`batch x classes`) of its images; updates the running statistics, by one set after another.
    pub fn forward(
        &self,
        graphs: &mut Graphs<PassKey>,
        parameters: &Parameters,
        scratch: &Scratch,
        batch: usize,
        images: &[Address],
        logits: &[Address],
    ) -> Result<()> {
        let _range = Range::new("forward");
        let key = self.key(batch, [images, logits].concat(), None);
        graphs.run(&*self.driver, key, || {
            let set_len = layout::shape(&parameters.layout, 0, batch).input_len();
            for (set, images) in images.iter().enumerate() {
                let packed = self.packed.address().offset::<u16>(set * set_len);
                attack::image_pack(&*self.driver, batch, *images, packed)?;
            }
            let layers = &parameters.layout.layers;
            let with = TrainLaunches { pass: self, parameters, scratch, batch };
            pass::forward(layers, 0..layers.len(), &mut TrainForward { with, logits })
        })
    }

    fn key(&self, batch: usize, operands: Vec<Address>, expected: Option<BackwardRequest>) -> PassKey {
        PassKey { pass: self.packed.address(), batch, operands, expected }
    }

    /// From the gradients of the logits of the last forward pass, one for each set, to whatever is wanted, over all sets.
    pub fn backward(
        &self,
        graphs: &mut Graphs<PassKey>,
        parameters: &Parameters,
        scratch: &Scratch,
        batch: usize,
        logit_gradients: &[Address],
        expected: &BackwardRequest,
    ) -> Result<()> {
        let _range = Range::new("backward");
        let key = self.key(batch, logit_gradients.to_vec(), Some(*expected));
        graphs.run(&*self.driver, key, || {
            let layers = &parameters.layout.layers;
            let with = TrainLaunches { pass: self, parameters, scratch, batch };
            pass::backward(layers, 0..layers.len(), &mut TrainBackward { with, logit_gradients, expected })?;
            self.driver.layer(None);
            Ok(())
        })
    }
}
