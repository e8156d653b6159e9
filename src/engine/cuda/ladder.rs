//! The ladder of convolution kernels: every layer of the network on every rung, ready to be timed.
//!
//! The rungs are mma.sync with im2col by cp.async, then wgmma with the copy engine's im2col mode, with planes of pixels, and each
//! of these with a persistent grid. The product is the last; the others are built for this alone. Beside it stand two of the
//! blocks that it takes where multiprocessors are idle. Each comes with how long an H200 should take ([`predict`]).
//! Called by `secateur bench ladder`; checked by `tests/ladder.rs`.

use std::cell::OnceCell;
use std::rc::Rc;

use super::driver::{Buffer, Driver};
use super::launch::conv::wgmma::predict::{Epilogue, IDLE_BLOCKS, LADDER, predict};
use super::launch::conv::wgmma::{self, Direction, Planned, Rung};
use super::launch::conv::{self, ConvShape, ForwardEpilogue, InputGradientEpilogue};
use crate::engine::{Error, LadderStep, Probe, Result};
use crate::model::ResNet;
use crate::philox::{Key, Purpose};

/// Launches of a run on a GPU: waiting for one alone takes a good part of its time.
const LAUNCHES: u32 = 16;

/// What the rungs of one layer share.
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
        Ok(Self {
            input: Buffer::from_slice(driver, "ladder input", &random(0, shape.input_len()))?,
            weights: Buffer::from_slice(driver, "ladder weights", &random(1, shape.weight_len()))?,
            bias: Buffer::from_slice(driver, "ladder bias", &vec![0f32; shape.out_channels])?,
            mask: Buffer::new(driver, "ladder mask", shape.output_len() / 8)?,
            output: Buffer::from_slice(driver, "ladder output", &random(2, shape.output_len()))?,
            input_gradient: Buffer::new(driver, "ladder input gradient", shape.input_len() * 2)?,
            driver: driver.clone(),
            shape,
        })
    }

    /// On the planned rung of wgmma, or on mma.
    fn run(&self, direction: Direction, planned: Option<&Planned>) -> Result<()> {
        let (driver, shape, weights) = (&*self.driver, &self.shape, self.weights.address());
        match direction {
            Direction::Forward => {
                let (bias, mask) = (self.bias.address(), self.mask.address());
                let ending = ForwardEpilogue::Relu { bias, residual: None, mask };
                let (from, to) = (self.input.address(), self.output.address());
                match planned {
                    Some(planned) => wgmma::forward(driver, planned, shape, from, weights, &ending, to),
                    None => conv::forward_on_mma(driver, shape, from, weights, &ending, to),
                }
            }
            Direction::Gradient => {
                let ending = InputGradientEpilogue::default();
                let (from, to) = (self.output.address(), self.input_gradient.address());
                match planned {
                    Some(planned) => {
                        wgmma::input_gradient(driver, planned, shape, from, weights, &ending, to)
                    }
                    None => conv::input_gradient_on_mma(driver, shape, from, weights, &ending, to),
                }
            }
        }
    }
}

/// Random bf16 values in [1, 2) and (-2, -1]: a GPU draws more power on these than on zeros, and is slower.
pub(super) fn random(stream: u32, len: usize) -> Vec<u32> {
    let key = Key { seed: 1, purpose: Purpose::Generation, epoch: 0, step: 0 };
    let words = (0..len.div_ceil(8)).flat_map(|block| key.block(stream, block as u32));
    words.map(|word| (word & 0x807f_807f) | 0x3f80_3f80).collect()
}

/// Every layer of the network that wgmma serves, forward and back, on every rung that serves it; `batch` images.
///
/// # Errors
/// [`Error::Unavailable`] where the driver has no wgmma: there is no ladder to climb.
pub fn ladder(driver: &Rc<dyn Driver>, network: ResNet, batch: usize) -> Result<Vec<LadderStep>> {
    if !driver.has_wgmma() {
        return Err(Error::Unavailable(format!(
            "{} has no wgmma: the ladder is for compute capability 9.0 (H100, H200) and for --device emulated:sm_90a",
            driver.info().name
        )));
    }
    let off = driver.options().wgmma_off;
    let launches = if driver.info().kind == "cuda" { LAUNCHES } else { 1 };
    let mut steps = Vec::new();
    let mut seen = Vec::new();
    for conv in network.convs() {
        let shape = ConvShape::new(&conv, batch);
        if seen.contains(&shape) || wgmma::planned(&shape, Direction::Forward, Rung::default()).is_err() {
            continue;
        }
        seen.push(shape);
        // Made when the first rung runs.
        let shared: Rc<OnceCell<Operands>> = Rc::default();
        // The epilogues of `Operands::run`.
        let passes = [
            (Direction::Forward, "forward", Epilogue::Relu { residual: false }),
            (Direction::Gradient, "input gradient", Epilogue::Gradient { residual: false }),
        ];
        for (direction, pass, epilogue) in passes {
            // Nor does a kernel run here that is switched off.
            let served = |(name, rung)| {
                let planned = wgmma::planned(&shape, direction, Rung { off, ..rung }).ok();
                Some((name, Some(planned.filter(|_| !off.has(direction.switch()))?)))
            };
            let rungs = LADDER.into_iter().chain(IDLE_BLOCKS).filter_map(served);
            for (name, planned) in std::iter::once(("mma", None)).chain(rungs) {
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
                        operands.run(direction, planned.as_ref())?;
                    }
                    driver.synchronize()
                };
                let layer = format!("{} {pass}", conv.name);
                let prediction = planned.map(|planned| predict(&planned, epilogue));
                steps.push(LadderStep {
                    probe: Probe::new(
                        format!("{layer}, {name}"),
                        conv::flops(&shape) * u64::from(launches),
                        run,
                    ),
                    launches,
                    layer,
                    rung: name,
                    prediction: prediction.map(|at| (at.seconds, at.bound)),
                });
            }
        }
    }
    Ok(steps)
}
