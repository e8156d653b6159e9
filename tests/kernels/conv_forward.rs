//! Forward convolution kernels against an f64 oracle: every shape of the network, every epilogue, every tile, every driver.

use std::rc::Rc;

use half::bf16;
use secateur::cuda::driver::host::HostDriver;
use secateur::cuda::driver::{Address, Driver};
use secateur::cuda::launch::conv::wgmma::{self, Block, Direction, Planned};
use secateur::cuda::launch::conv::{
    ConvShape, ForwardEpilogue, Mask, MaskOrder, Product, Reduction, Tile, forward as launch_forward,
    forward_tiled, mask_bytes, statistics_partials, statistics_tile_rows,
};
use secateur::engine::{Error, WgmmaOff};

use crate::common::conv::*;

/// What a call wrote.
#[derive(PartialEq)]
struct Outputs {
    output: Vec<u16>,
    mask: Vec<u8>,
    partials: Vec<u32>,
}

impl Outputs {
    fn values(&self) -> Vec<bf16> {
        self.output.iter().map(|bits| bf16::from_bits(*bits)).collect()
    }
    fn partials(&self) -> Vec<f64> {
        self.partials.iter().map(|bits| f64::from(f32::from_bits(*bits))).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    Relu,
    ReluResidual,
    /// With a residual, its mask in the order of fragments.
    ReluFragments,
    Bias,
    Statistics,
}

/// Which of the kernels runs.
#[derive(Clone, Copy)]
#[allow(clippy::large_enum_variant)] // one value at a time
enum Kernel {
    /// The one that the launch code chooses.
    Chosen,
    Tile(Tile),
    Planned(Planned),
}

struct Case {
    shape: ConvShape,
    input: Vec<bf16>,
    weights: Vec<bf16>,
    bias: Vec<f32>,
    residual: Vec<bf16>,
    sums: Sums,
}

impl Case {
    fn new(shape: ConvShape) -> Self {
        let input = halves(1, shape.input_len(), 1.0);
        let weights = weights(2, &shape);
        let sums = forward(&shape, &input, &weights);
        Self {
            bias: numbers(3, shape.out_channels, 0.5),
            residual: halves(4, shape.output_len(), 1.0),
            shape,
            input,
            weights,
            sums,
        }
    }

    fn run(&self, driver: &Rc<dyn Driver>, ending: Ending, kernel: Kernel) -> Outputs {
        self.try_run(driver, ending, kernel).unwrap()
    }

    /// The error is that of the launch.
    fn try_run(&self, driver: &Rc<dyn Driver>, ending: Ending, kernel: Kernel) -> Result<Outputs, Error> {
        let shape = &self.shape;
        let input = upload(driver, "input", &self.input);
        let weights = upload(driver, "weights", &self.weights);
        let bias = upload(driver, "bias", &self.bias);
        let residual = upload(driver, "residual", &self.residual);
        let output = poisoned::<bf16>(driver, "output", shape.output_len());
        let mask = poisoned::<u8>(driver, "mask", mask_bytes(shape));
        let partials = poisoned::<f32>(driver, "partials", statistics_partials(shape));
        let relu = |residual, order| {
            let mask = Mask { address: mask.address(), order };
            ForwardEpilogue::Relu { bias: bias.address(), residual, mask }
        };
        let epilogue = match ending {
            Ending::Relu => relu(None, MaskOrder::Plain),
            Ending::ReluResidual => relu(Some(residual.address()), MaskOrder::Plain),
            Ending::ReluFragments => relu(Some(residual.address()), MaskOrder::Fragments),
            Ending::Bias => ForwardEpilogue::Bias { bias: bias.address() },
            Ending::Statistics => ForwardEpilogue::Statistics { partials: partials.address() },
        };
        let (from, weights, to) = (input.address(), weights.address(), output.address());
        let product = Product { shape, from, weights, to };
        match kernel {
            Kernel::Tile(tile) => forward_tiled(&**driver, tile, product, &epilogue)?,
            Kernel::Planned(planned) => wgmma::forward(&**driver, &planned, product, &epilogue)?,
            Kernel::Chosen => launch_forward(&**driver, Reduction::Whole, product, &epilogue)?,
        }
        let mut mask = mask.to_vec()?;
        if ending == Ending::ReluFragments {
            mask = in_plain(shape.out_side(), shape.out_channels, shape.output_len(), &mask);
        }
        Ok(Outputs { output: output.to_vec()?, mask, partials: partials.to_vec()? })
    }

    /// `tile_rows` is what one partial result of the statistics covers.
    fn check(&self, what: &str, ending: Ending, tile_rows: usize, outputs: &Outputs) {
        let channels = self.shape.out_channels;
        // Exact value before the ReLU, and how far f32 may be from it.
        let before: Vec<(f64, f64)> = (0..self.shape.output_len())
            .map(|i| {
                let bias = if ending == Ending::Statistics { 0.0 } else { self.bias[i % channels].into() };
                let added = matches!(ending, Ending::ReluResidual | Ending::ReluFragments);
                let residual = if added { self.residual[i].to_f64() } else { 0.0 };
                let value = self.sums.value[i] + bias + residual;
                let added = 2f64.powi(-22) * (self.sums.value[i].abs() + bias.abs() + residual.abs());
                (value, self.sums.error(i) + added)
            })
            .collect();
        let relu = matches!(ending, Ending::Relu | Ending::ReluResidual | Ending::ReluFragments);
        let expected: Vec<f64> = before.iter().map(|(v, _)| if relu { v.max(0.0) } else { *v }).collect();
        let bound = |i: usize| half_ulp(expected[i]) + 1.01 * before[i].1;
        check(what, &from_halves(&outputs.values()), &expected, bound, WHOLE_BF16);

        if relu {
            for (i, (value, error)) in before.iter().enumerate() {
                let bit = outputs.mask[i / 8] >> (i % 8) & 1 == 1;
                assert_eq!(
                    bit,
                    outputs.values_positive(i),
                    "{what}: mask and output of element {i} disagree"
                );
                assert!(
                    bit == (*value > 0.0) || value.abs() <= *error,
                    "{what}: mask of element {i} is {bit}, the value {value}"
                );
            }
        } else {
            assert!(outputs.mask.iter().all(|byte| *byte == 0xFF), "{what}: wrote a mask");
        }
        if ending == Ending::Statistics {
            self.check_statistics(what, tile_rows, outputs);
        } else {
            assert!(outputs.partials().iter().all(|v| v.is_nan()), "{what}: wrote statistics");
        }
    }

    /// The partial statistics are those of the very outputs that were stored.
    fn check_statistics(&self, what: &str, tile: usize, outputs: &Outputs) {
        let channels = self.shape.out_channels;
        let (values, mut actual) = (from_halves(&outputs.values()), outputs.partials());
        // There is room for the smallest tiles; of larger ones there are fewer.
        let written = self.shape.output_rows().div_ceil(tile) * 2 * channels;
        assert!(actual.split_off(written).iter().all(|v| v.is_nan()), "{what}: wrote beyond its statistics");
        let mut expected = vec![0.0; actual.len()];
        let mut bounds = vec![0.0; actual.len()];
        for (t, rows) in values.chunks(tile * channels).enumerate() {
            for k in 0..channels {
                let column: Vec<f64> = rows.iter().skip(k).step_by(channels).copied().collect();
                let count = column.len() as f64;
                let mean = column.iter().sum::<f64>() / count;
                let at = 2 * t * channels + k;
                expected[at] = mean;
                bounds[at] = 1e-6 * column.iter().map(|v| v.abs()).sum::<f64>() / count;
                expected[at + channels] = column.iter().map(|v| (v - mean).powi(2)).sum();
                bounds[at + channels] = 4e-6 * expected[at + channels] + count * bounds[at].powi(2);
            }
        }
        check(&format!("{what}, statistics"), &actual, &expected, |i| bounds[i], 1e-6);
    }
}

impl Outputs {
    fn values_positive(&self, i: usize) -> bool {
        bf16::from_bits(self.output[i]) > bf16::ZERO
    }
}

const ENDINGS: [Ending; 4] = [Ending::Relu, Ending::ReluResidual, Ending::Bias, Ending::Statistics];

#[test]
fn every_shape_and_every_epilogue_agree_with_the_oracle() {
    println!("seed {SEED}");
    for shape in all_shapes() {
        let case = Case::new(shape);
        let hopper =
            wgmma::product(&*HostDriver::hopper(), Reduction::Whole, &shape, Direction::Forward).is_some();
        for ending in ENDINGS {
            let mut families = Families::new();
            for (name, driver) in conv_drivers(hopper) {
                let what = format!("{shape:?}, {ending:?}, {name}");
                let outputs = case.run(&driver, ending, Kernel::Chosen);
                case.check(&what, ending, statistics_tile_rows(&*driver, &shape), &outputs);
                assert!(families.agree(name, outputs), "{what}: other bits than the first of its family");
            }
        }
    }
}

#[test]
fn no_block_and_no_grid_changes_a_result() {
    println!("seed {SEED}");
    // Enough images for a last group that is cut short.
    let driver = hopper();
    let mut tried = 0;
    for shape in shapes(64, 17)
        .into_iter()
        .filter(|shape| wgmma::product(&*driver, Reduction::Whole, shape, Direction::Forward).is_some())
    {
        let shape = ConvShape { batch: if shape.out_side() == 4 { 17 } else { 5 }, ..shape };
        let case = Case::new(shape);
        for ending in [Ending::ReluResidual, Ending::ReluFragments, Ending::Statistics] {
            let mut families = Families::new();
            for planned in
                Block::ALL.into_iter().filter_map(|block| in_block(&shape, Direction::Forward, block))
            {
                let block = planned.block;
                for most_blocks in [2 * block.parts(), usize::MAX] {
                    let planned = Planned { most_blocks, ..planned };
                    let outputs = case.run(&driver, ending, Kernel::Planned(planned));
                    let what = format!("{shape:?}, {ending:?}, {block:?}, at most {most_blocks} blocks");
                    case.check(&what, ending, wgmma::STATISTICS_ROWS, &outputs);
                    let family = if block.splits() { "split" } else { "whole" };
                    assert!(families.agree(family, outputs), "{what}: another block, other bits");
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 120 || switched_off() != WgmmaOff::NONE, "{tried}");
}

#[test]
fn every_block_goes_from_work_to_work_and_gives_the_same_bits_in_every_order() {
    println!("seed {SEED}");
    for shape in shapes(64, 1) {
        let (shape, plans) = in_one_block(shape, Direction::Forward);
        if plans.is_empty() {
            continue;
        }
        let case = Case::new(shape);
        for planned in plans {
            let split = planned.block == Block::Split;
            let endings = if split { &ENDINGS[..] } else { &[Ending::ReluResidual, Ending::Statistics] };
            for &ending in endings.iter().chain(&[Ending::ReluFragments]) {
                let mut families = Families::new();
                for (name, driver) in wgmma_drivers() {
                    let what = format!("{shape:?}, {ending:?}, {:?}, {name}", planned.block);
                    let outputs = case.run(&driver, ending, Kernel::Planned(planned));
                    case.check(&what, ending, wgmma::STATISTICS_ROWS, &outputs);
                    assert!(families.agree(name, outputs), "{what}: other bits than in the first order");
                }
            }
        }
    }
}

#[test]
fn the_tile_never_changes_a_bit() {
    println!("seed {SEED}");
    for shape in all_shapes().into_iter().filter(|shape| shape.out_channels >= 64 && shape.in_side <= 16) {
        let case = Case::new(shape);
        for ending in [Ending::ReluResidual, Ending::Bias, Ending::Statistics] {
            for (name, driver) in drivers() {
                let reference = case.run(&driver, ending, Kernel::Tile(Tile::Columns64));
                case.check(&format!("{shape:?}, {ending:?}, {name}, 64"), ending, Tile::ROWS, &reference);
                for tile in Tile::ALL.into_iter().filter(|tile| shape.out_channels % tile.columns() == 0) {
                    let outputs = case.run(&driver, ending, Kernel::Tile(tile));
                    let what = format!("{shape:?}, {ending:?}, {name}, {tile:?}");
                    assert!(outputs.output == reference.output && outputs.mask == reference.mask, "{what}");
                    // Sums over rows are taken in another order.
                    case.check(&what, ending, Tile::ROWS, &outputs);
                }
            }
        }
    }
}

#[test]
fn the_stem_sees_the_image_beyond_bf16() {
    println!("seed {SEED}");
    for width in [16, 64] {
        let shape = shapes(width, 2)[0];
        assert!(shape.is_stem());
        // Pixels near 1, where a bf16 step is 1/256, half a pixel level apart.
        let image: Vec<f32> =
            numbers(9, 3 * shape.input_rows(), 0.02).into_iter().map(|v| 0.97 + v).collect();
        let (mut packed, mut exact) = (Vec::new(), Vec::new());
        for pixel in image.chunks(3) {
            let hi: Vec<bf16> = pixel.iter().map(|v| bf16::from_f32(*v)).collect();
            packed.extend(&hi);
            packed.extend(pixel.iter().zip(&hi).map(|(v, hi)| bf16::from_f32(v - hi.to_f32())));
            packed.extend([bf16::ZERO; 2]);
            exact.extend(pixel.iter().map(|v| f64::from(*v)));
        }
        let colours = weights(2, &ConvShape { in_channels: 3, ..shape });
        let with: Vec<bf16> = colours
            .chunks(3)
            .flat_map(|w| [w[0], w[1], w[2], w[0], w[1], w[2], bf16::ZERO, bf16::ZERO])
            .collect();
        // The split is exact to 2^-16 of a pixel: the oracle on hi + lo is the oracle on the image.
        let sums = forward(&shape, &packed, &with);
        for (pixel, value) in exact.chunks(3).enumerate() {
            for (c, value) in value.iter().enumerate() {
                let split = packed[8 * pixel + c].to_f64() + packed[8 * pixel + 3 + c].to_f64();
                assert!((split - value).abs() <= 2f64.powi(-16), "pixel {pixel}: {split}, expected {value}");
            }
        }
        for (name, driver) in drivers() {
            let case = Case {
                shape,
                input: packed.clone(),
                weights: with.clone(),
                bias: vec![0.0; shape.out_channels],
                residual: vec![bf16::ZERO; shape.output_len()],
                sums: sums.clone(),
            };
            let outputs = case.run(&driver, Ending::Bias, Kernel::Chosen);
            case.check(&format!("stem of width {width}, {name}"), Ending::Bias, Tile::ROWS, &outputs);
        }
    }
}

#[test]
fn a_shape_that_the_kernels_cannot_do_is_refused() {
    let (_, driver) = drivers().remove(0);
    let good = shapes(16, 1)[1];
    let memory = poisoned::<u8>(&driver, "anything", 16).address();
    let epilogue = ForwardEpilogue::Bias { bias: memory };
    let bad = [
        (ConvShape { batch: 0, ..good }, "batch 0"),
        (ConvShape { in_channels: 24, ..good }, "input channels 24"),
        (ConvShape { out_channels: 8, ..good }, "output channels 8"),
        (ConvShape { in_side: 28, ..good }, "output side 28"),
        (ConvShape { kernel: 5, ..good }, "kernel 5"),
        (ConvShape { batch: 1 << 20, ..good }, "2^31"),
    ];
    fn product(shape: &ConvShape, memory: Address) -> Product<'_> {
        Product { shape, from: memory, weights: memory, to: memory }
    }
    for (shape, expected) in bad {
        let error =
            launch_forward(&*driver, Reduction::Whole, product(&shape, memory), &epilogue).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    let error = forward_tiled(&*driver, Tile::Columns64, product(&good, memory), &epilogue).unwrap_err();
    assert!(error.to_string().contains("narrower tile"), "{error}");
    let mask = Mask { address: memory, order: MaskOrder::Fragments };
    let relu = ForwardEpilogue::Relu { bias: memory, residual: None, mask };
    let error = launch_forward(&*driver, Reduction::Whole, product(&good, memory), &relu).unwrap_err();
    assert!(error.to_string().contains("expected a plain one"), "{error}");
}
