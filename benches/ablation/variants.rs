//! The variants of the convolution kernels: every layer of the network on each, ready to be timed.
//!
//! They are mma.sync with im2col by cp.async, then wgmma with TMA's im2col mode, with planes of pixels, and each of these with a persistent
//! grid. The product is the last. Two of the blocks that it takes where multiprocessors are idle follow. Each comes with how long an H200
//! should take.

use std::cell::OnceCell;
use std::rc::Rc;
use std::time::Instant;

use secateur::cuda::driver::{Buffer, Driver};
use secateur::cuda::launch::conv::wgmma::{self, BLOCKS, Block, Direction, Planned};
use secateur::cuda::launch::conv::{
    self, ConvShape, ForwardEpilogue, InputGradientEpilogue, Mask, MaskOrder, Product, mask_bytes,
};
use secateur::engine::{Error, Result};
use secateur::measure::predict::wgmma::{Epilogue, Prediction, predict};
use secateur::measure::probes::random_halves;
use secateur::model::ResNet;

use super::im2col;

/// Launches of a sample on a GPU: waiting for one alone takes a good part of its time.
const LAUNCHES: u32 = 16;

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Variant {
    Mma,
    Im2col { persistent: bool },
    Planes { persistent: bool },
    Block(Block),
}

/// Every variant, slowest first, and what it is called.
pub const VARIANTS: [(&str, Variant); 7] = [
    ("mma", Variant::Mma),
    ("im2col", Variant::Im2col { persistent: false }),
    ("im2col, persistent", Variant::Im2col { persistent: true }),
    ("planes", Variant::Planes { persistent: false }),
    ("planes, persistent", Variant::Planes { persistent: true }),
    ("planes, 64x256", Variant::Block(Block::Small)),
    ("planes, 64x256 split", Variant::Block(Block::Split)),
];

impl Variant {
    /// The plan on wgmma in one of the allowed blocks; `None` on mma, and where the variant does not serve the convolution.
    pub fn plan(
        self,
        shape: &ConvShape,
        direction: Direction,
        allowed: impl Fn(Block) -> bool,
    ) -> Option<Planned> {
        let (planned, persistent) = match self {
            Self::Mma => return None,
            Self::Im2col { persistent } => (im2col::plan(shape, direction, allowed)?, persistent),
            Self::Planes { persistent } => {
                (wgmma::plan(shape, direction, |block| !block.splits() && allowed(block))?, persistent)
            }
            Self::Block(one) => {
                (wgmma::plan(shape, direction, |block| block == one && allowed(block))?, true)
            }
        };
        Some(Planned { most_blocks: if persistent { BLOCKS } else { usize::MAX }, ..planned })
    }

    /// In which order the forward convolution leaves its mask.
    fn mask_order(self) -> MaskOrder {
        match self {
            Self::Mma | Self::Im2col { .. } => MaskOrder::Plain,
            Self::Planes { .. } | Self::Block(_) => MaskOrder::Fragments,
        }
    }
}

/// What the variants of one layer share.
struct Operands {
    driver: Rc<dyn Driver>,
    shape: ConvShape,
    input: Buffer,
    weights: Buffer,
    bias: Buffer,
    mask: Buffer,
    output: Buffer,
    input_gradient: Buffer,
}

impl Operands {
    fn new(driver: &Rc<dyn Driver>, shape: ConvShape) -> Result<Self> {
        let halves = |name, stream, len| Buffer::from_slice(driver, name, &random_halves(stream, len));
        Ok(Self {
            input: halves("input", 0, shape.input_len())?,
            weights: halves("weights", 1, shape.weight_len())?,
            bias: Buffer::from_slice(driver, "bias", &vec![0f32; shape.out_channels])?,
            mask: Buffer::new(driver, "mask", mask_bytes(&shape))?,
            output: halves("output", 2, shape.output_len())?,
            input_gradient: Buffer::new(driver, "input gradient", shape.input_len() * 2)?,
            driver: driver.clone(),
            shape,
        })
    }

    /// One launch; `planned` is the variant's, where it is on wgmma.
    fn launch(&self, variant: Variant, direction: Direction, planned: Option<&Planned>) -> Result<()> {
        let (driver, shape, weights) = (&*self.driver, &self.shape, self.weights.address());
        let product =
            |from: &Buffer, to: &Buffer| Product { shape, from: from.address(), weights, to: to.address() };
        let in_im2col = matches!(variant, Variant::Im2col { .. });
        match direction {
            Direction::Forward => {
                let (bias, mask) = (self.bias.address(), self.mask.address());
                let ordered = Mask { address: mask, order: variant.mask_order() };
                let epilogue = ForwardEpilogue::Relu { bias, residual: None, mask: ordered };
                let product = product(&self.input, &self.output);
                match planned {
                    Some(planned) if in_im2col => {
                        let relu = im2col::Relu { bias, residual: None, mask };
                        im2col::forward(driver, planned, product, relu)
                    }
                    Some(planned) => wgmma::forward(driver, planned, product, &epilogue),
                    None => conv::forward_on_mma(driver, product, &epilogue),
                }
            }
            Direction::Gradient => {
                let epilogue = InputGradientEpilogue::default();
                let product = product(&self.output, &self.input_gradient);
                match planned {
                    Some(planned) if in_im2col => im2col::input_gradient(driver, planned, product, &epilogue),
                    Some(planned) => wgmma::input_gradient(driver, planned, product, &epilogue),
                    None => conv::input_gradient_on_mma(driver, product, &epilogue),
                }
            }
        }
    }
}

/// One layer in one variant.
pub struct Step {
    /// The layer and the pass: `layer1.0.conv1 forward`.
    pub layer: String,
    pub variant: &'static str,
    /// Floating-point operations of a launch.
    pub flops: u64,
    /// Of an H200; none on mma.
    pub prediction: Option<Prediction>,
    launches: u32,
    run: Box<dyn FnMut() -> Result<()>>,
}

impl Step {
    /// The name of its row: layer, pass and variant.
    pub fn name(&self) -> String {
        format!("{}, {}", self.layer, self.variant)
    }

    /// Seconds of a launch, of some back to back on a GPU; memory is taken the first time.
    pub fn seconds(&mut self) -> Result<f64> {
        let begin = Instant::now();
        (self.run)()?;
        Ok(begin.elapsed().as_secs_f64() / f64::from(self.launches))
    }
}

/// Every layer of the network that wgmma serves, forward and back, in every variant that serves it and is not switched off; `batch` images.
///
/// # Errors
/// [`Error::Unavailable`] where the driver has no wgmma.
pub fn steps(driver: &Rc<dyn Driver>, network: ResNet, batch: usize) -> Result<Vec<Step>> {
    if !driver.has_wgmma() {
        return Err(Error::Unavailable(format!(
            "{} has no wgmma: the variants are for compute capability 9.0 (H100, H200) and for --device emulated:sm_90a",
            driver.info().name
        )));
    }
    let off = driver.options().wgmma_off;
    let launches = if driver.info().kind == "cuda" { LAUNCHES } else { 1 };
    let mut steps = Vec::new();
    let mut seen = Vec::new();
    for conv in network.convs() {
        let shape = ConvShape::new(&conv, batch);
        if seen.contains(&shape) || wgmma::plan(&shape, Direction::Forward, |_| true).is_none() {
            continue;
        }
        seen.push(shape);
        let shared: Rc<OnceCell<Operands>> = Rc::default();
        // The epilogues are those of `Operands::launch`.
        for (direction, pass) in [(Direction::Forward, "forward"), (Direction::Gradient, "input gradient")] {
            for (name, variant) in VARIANTS {
                let epilogue = match direction {
                    Direction::Forward => Epilogue::Relu { residual: false, mask: variant.mask_order() },
                    // No mask costs what one in fragments does.
                    Direction::Gradient => Epilogue::Gradient { residual: false, mask: MaskOrder::Fragments },
                };
                let planned = variant.plan(&shape, direction, |block| !off.has(block.switch()));
                let planned = planned.filter(|_| !off.has(direction.switch()));
                if planned.is_none() && variant != Variant::Mma {
                    continue;
                }
                let (shared, driver) = (shared.clone(), driver.clone());
                let run = move || {
                    let operands = match shared.get() {
                        Some(operands) => operands,
                        None => {
                            let made = Operands::new(&driver, shape)?;
                            shared.get_or_init(|| made)
                        }
                    };
                    for _ in 0..launches {
                        operands.launch(variant, direction, planned.as_ref())?;
                    }
                    driver.synchronize()
                };
                steps.push(Step {
                    layer: format!("{} {pass}", conv.name),
                    variant: name,
                    flops: conv::flops(&shape),
                    prediction: planned.map(|planned| predict(&planned, epilogue)),
                    launches,
                    run: Box::new(run),
                });
            }
        }
    }
    Ok(steps)
}
