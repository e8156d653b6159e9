//! How long launches should take on an H200, one after the other: what a bench prints next to what it measures.
//!
//! Convolutions on wgmma have a model of their own ([`wgmma`]). Those on mma.sync are bound by what their blocks gather from
//! the second-level cache or by the tensor cores, everything else by the bytes that it declares. Every launch has a beginning and
//! an end in which a multiprocessor does nothing else.

pub mod wgmma;

use crate::cuda::driver::Address;
use crate::cuda::launch::conv::wgmma::{BLOCKS, Block, Direction, plan};
use crate::cuda::launch::conv::{
    ConvShape, ForwardEpilogue, InputGradientEpilogue, Mask, MaskOrder, flops, forward_cost,
    input_gradient_cost,
};
use crate::engine::{Engine, Launch};
use crate::model::{Conv, Layer};
use wgmma::{CACHE_BYTES_A_CLOCK, CLOCK, Epilogue, LAUNCH, predict, predict_weight_gradient};

/// Bytes a clock of all multiprocessors that copies of 16 bytes gather (cp.async): so many that the stem and the image gradient of a
/// step of 512 images take the 160 to 180 us that the desk audit of the sm_90a machine code (2026-11-28) counts.
const GATHERED_A_CLOCK: f64 = 30.0 * BLOCKS as f64;
/// Operations a clock of all multiprocessors through mma.sync, which reaches 65 % of a Hopper's tensor rate.
const MMA_FLOPS_A_CLOCK: f64 = 0.65 * 4_096.0 * BLOCKS as f64;
/// Bytes of the second-level cache, and bytes a second of the memory (a copy, measured on an H200).
const CACHE: f64 = 60e6;
const MEMORY_RATE: f64 = 4.3e12;
/// Bytes a second of the second-level cache.
const CACHE_RATE: f64 = CACHE_BYTES_A_CLOCK * BLOCKS as f64 * CLOCK;

/// Seconds of all of them, as launches of an attack; `None` where the engine's device is no Hopper and stands for none, for no launch,
/// and where one has no model.
pub fn predicted_seconds(engine: &Engine, launches: &[Launch]) -> Option<f64> {
    engine.driver().filter(|driver| driver.has_wgmma())?;
    let network = engine.network();
    let (convs, layers) = (network.convs(), network.layers());
    let seconds: Option<Vec<f64>> =
        launches.iter().map(|launch| launch_seconds(launch, &convs, &layers)).collect();
    seconds.filter(|seconds| !seconds.is_empty()).map(|seconds| seconds.iter().sum())
}

fn launch_seconds(launch: &Launch, convs: &[Conv], layers: &[Layer]) -> Option<f64> {
    // What does not fit in the cache comes from memory, and goes there.
    let bytes = launch.bytes as f64;
    let moved = bytes / if bytes > CACHE { MEMORY_RATE } else { CACHE_RATE } + LAUNCH / CLOCK;
    if !launch.kernel.starts_with("conv_") || launch.kernel.contains("_reduce") {
        return (launch.bytes > 0).then_some(moved);
    }
    let shape = conv_shape(launch, convs)?;
    let computed = match (launch.kernel.split_once("_wgmma_"), launch.kernel.split_once("_mma_")) {
        (Some((operation, block)), _) => on_wgmma(launch, &shape, operation, block, |direction| {
            mask_order(launch, convs, layers, direction)
        }),
        (_, Some((_, tile))) => on_mma(launch, &shape, tile),
        _ => None,
    };
    computed.map(|computed| computed.max(moved))
}

/// The convolution of a launch: that of its layer, with as many images as its operations are for.
fn conv_shape(launch: &Launch, convs: &[Conv]) -> Option<ConvShape> {
    let one = ConvShape::new(convs.get(launch.layer?)?, 1);
    Some(ConvShape { batch: (launch.flops / flops(&one)) as usize, ..one })
}

/// In which order a launch writes or reads the mask of an activation, where wgmma serves all that it serves: plain for the head and
/// where the convolution that reads the activation has a stride, or the stem writes it.
fn mask_order(launch: &Launch, convs: &[Conv], layers: &[Layer], direction: Direction) -> MaskOrder {
    let of_conv = |at| layers.iter().find(|layer| layer.conv == at);
    let layer = launch.layer.and_then(of_conv);
    let reader = match direction {
        Direction::Forward => {
            layer.and_then(|of| layers.iter().find(|reader| reader.input == Some(of.index)))
        }
        Direction::Gradient => layer.filter(|layer| layer.input != Some(0)),
    };
    match reader {
        Some(reader) if convs[reader.conv].stride == 1 => MaskOrder::Fragments,
        _ => MaskOrder::Plain,
    }
}

fn on_wgmma(
    launch: &Launch,
    shape: &ConvShape,
    operation: &str,
    block: &str,
    mask_order: impl Fn(Direction) -> MaskOrder,
) -> Option<f64> {
    if operation == "conv_weight_gradient" {
        return Some(predict_weight_gradient(shape, &plan(shape, Direction::Forward, |_| true)?));
    }
    let (direction, epilogue) = match operation {
        "conv_forward_bias" => (Direction::Forward, Epilogue::Bias),
        "conv_forward_statistics" => (Direction::Forward, Epilogue::Statistics),
        "conv_forward_relu" => {
            let mask = Mask::plain(Address::NULL);
            let plain = ForwardEpilogue::Relu { bias: Address::NULL, residual: None, mask };
            let residual = launch.bytes > forward_cost(shape, &plain).bytes;
            (Direction::Forward, Epilogue::Relu { residual, mask: mask_order(Direction::Forward) })
        }
        "conv_input_gradient" => {
            // A mask is a sixteenth of what is written, a residual at least a quarter.
            let plain = input_gradient_cost(shape, &InputGradientEpilogue::default()).bytes;
            let written = 2 * (shape.input_len() as u64);
            let residual = launch.bytes > plain + written / 8;
            (Direction::Gradient, Epilogue::Gradient { residual, mask: mask_order(Direction::Gradient) })
        }
        _ => return None,
    };
    let block = Block::ALL.into_iter().find(|known| known.name() == block)?;
    Some(predict(&plan(shape, direction, |any| any == block)?, epilogue).seconds)
}

/// A grid of tiles of `rows` x `columns` sums, each over its depth.
fn on_mma(launch: &Launch, shape: &ConvShape, tile: &str) -> Option<f64> {
    let (rows, columns) = tile.split_once('x')?;
    let (rows, columns): (usize, usize) = (rows.parse().ok()?, columns.parse().ok()?);
    let [x, y, z] = launch.grid.map(|blocks| blocks as usize);
    let depth = match launch.kernel {
        kernel if kernel.contains("weight_gradient") => shape.output_rows() / z,
        kernel if kernel.contains("forward") => shape.taps() * shape.in_channels,
        // The phases of a strided gradient share its taps.
        _ => shape.taps() * shape.out_channels / z,
    };
    let blocks = (x * y * z) as f64;
    let gathered = blocks * ((rows + columns) * depth * 2) as f64 + launch.bytes as f64;
    let products = blocks * (2 * rows * columns * depth) as f64;
    Some(((gathered / GATHERED_A_CLOCK).max(products / MMA_FLOPS_A_CLOCK) + LAUNCH) / CLOCK)
}
