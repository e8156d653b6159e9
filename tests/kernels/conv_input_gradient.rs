//! Input gradient kernels against an f64 oracle: every shape of the network, every epilogue, every tile, every driver.

use std::rc::Rc;

use half::bf16;
use secateur::cuda::driver::Driver;
use secateur::cuda::driver::host::HostDriver;
use secateur::cuda::launch::conv::wgmma::{self, Block, Direction, Planned};
use secateur::cuda::launch::conv::{
    ConvShape, InputGradientEpilogue, Mask, MaskOrder, Product, Reduction, Tile,
    input_gradient as launch_input_gradient, input_gradient_tiled,
};
use secateur::engine::{Error, WgmmaOff};

use crate::common::conv::*;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Ending {
    residual: bool,
    mask: Option<MaskOrder>,
}

const ENDINGS: [Ending; 4] = [
    Ending { residual: false, mask: None },
    Ending { residual: false, mask: Some(MaskOrder::Plain) },
    Ending { residual: true, mask: Some(MaskOrder::Plain) },
    Ending { residual: true, mask: None },
];
/// For stride 1 on wgmma alone.
const FRAGMENTS: Ending = Ending { residual: true, mask: Some(MaskOrder::Fragments) };

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
    output_gradient: Vec<bf16>,
    weights: Vec<bf16>,
    /// Of the input's shape, or compact.
    residual: Vec<bf16>,
    mask: Vec<u8>,
    /// Of every input pixel.
    sums: Sums,
}

impl Case {
    fn new(shape: ConvShape) -> Self {
        let output_gradient = halves(11, shape.output_len(), 1.0);
        let weights = weights(12, &shape);
        let sums = input_gradient(&shape, &output_gradient, &weights);
        let mask = numbers(14, shape.input_len(), 1.0);
        let mask = mask.chunks(8).map(|eight| (0..8).map(|i| u8::from(eight[i] > 0.0) << i).sum()).collect();
        Self {
            residual: halves(13, shape.output_rows() * shape.in_channels, 1.0),
            mask,
            shape,
            output_gradient,
            weights,
            sums,
        }
    }

    /// Position in a compact tensor of element `i` of the input, if it has one.
    fn compact(&self, i: usize) -> Option<usize> {
        let shape = &self.shape;
        let (side, channels) = (shape.in_side, shape.in_channels);
        let (pixel, c) = (i / channels, i % channels);
        let (image, h, w) = (pixel / (side * side), pixel / side % side, pixel % side);
        let s = shape.stride;
        (h % s == 0 && w % s == 0).then(|| ((image * side / s + h / s) * side / s + w / s) * channels + c)
    }

    fn endings(&self) -> Vec<Ending> {
        ENDINGS[..if self.shape.kernel == 1 { 1 } else { 4 }].to_vec()
    }

    fn run(&self, driver: &Rc<dyn Driver>, ending: Ending, kernel: Kernel) -> Vec<u16> {
        self.try_run(driver, ending, kernel).unwrap()
    }

    /// The error is that of the launch.
    fn try_run(&self, driver: &Rc<dyn Driver>, ending: Ending, kernel: Kernel) -> Result<Vec<u16>, Error> {
        let shape = &self.shape;
        let output_gradient = upload(driver, "output gradient", &self.output_gradient);
        let weights = upload(driver, "weights", &self.weights);
        let residual = upload(driver, "residual", &self.residual);
        let mask = match ending.mask {
            Some(MaskOrder::Fragments) => in_fragments(shape.in_side, shape.in_channels, &self.mask),
            _ => self.mask.clone(),
        };
        let mask = upload(driver, "mask", &mask);
        let len = if shape.kernel == 1 { self.residual.len() } else { shape.input_len() };
        let target = poisoned::<bf16>(driver, "input gradient", len);
        let epilogue = InputGradientEpilogue {
            residual: ending.residual.then(|| residual.address()),
            mask: ending.mask.map(|order| Mask { address: mask.address(), order }),
        };
        let (from, weights, to) = (output_gradient.address(), weights.address(), target.address());
        let product = Product { shape, from, weights, to };
        match kernel {
            Kernel::Tile(tile) => input_gradient_tiled(&**driver, tile, product, &epilogue)?,
            Kernel::Planned(planned) => wgmma::input_gradient(&**driver, &planned, product, &epilogue)?,
            Kernel::Chosen => launch_input_gradient(&**driver, Reduction::Whole, product, &epilogue)?,
        }
        target.to_vec()
    }

    fn check(&self, what: &str, ending: Ending, bits: &[u16]) {
        let actual: Vec<bf16> = bits.iter().map(|bits| bf16::from_bits(*bits)).collect();
        // Elements of the input that the result holds, in its order, with the residual's element of each.
        let held: Vec<(usize, Option<usize>)> = (0..self.shape.input_len())
            .map(|i| (i, self.compact(i)))
            .filter(|(_, compact)| self.shape.kernel == 3 || compact.is_some())
            .collect();
        let (mut expected, mut errors) = (Vec::new(), Vec::new());
        for (i, compact) in held {
            let added = compact.filter(|_| ending.residual).map_or(0.0, |at| self.residual[at].to_f64());
            let passes = ending.mask.is_none() || self.mask[i / 8] >> (i % 8) & 1 == 1;
            let error = self.sums.error(i) + 2f64.powi(-22) * (self.sums.value[i].abs() + added.abs());
            expected.push(if passes { self.sums.value[i] + added } else { 0.0 });
            errors.push(if passes { error } else { 0.0 });
        }
        check(
            what,
            &from_halves(&actual),
            &expected,
            |i| half_ulp(expected[i]) + 1.01 * errors[i],
            WHOLE_BF16,
        );
    }
}

/// What every block of wgmma is tried with.
fn on_wgmma(shape: &ConvShape) -> Vec<Ending> {
    match (shape.kernel, shape.stride) {
        (1, _) => vec![ENDINGS[0]],
        (_, 1) => vec![ENDINGS[2], FRAGMENTS],
        _ => vec![ENDINGS[2]],
    }
}

#[test]
fn every_shape_and_every_epilogue_agree_with_the_oracle() {
    println!("seed {SEED}");
    for shape in all_shapes().into_iter().filter(|shape| !shape.is_stem()) {
        let case = Case::new(shape);
        let hopper =
            wgmma::product(&*HostDriver::hopper(), Reduction::Whole, &shape, Direction::Gradient).is_some();
        for ending in case.endings() {
            let mut families = Families::new();
            for (name, driver) in conv_drivers(hopper) {
                let what = format!("{shape:?}, {ending:?}, {name}");
                let bits = case.run(&driver, ending, Kernel::Chosen);
                case.check(&what, ending, &bits);
                assert!(families.agree(name, bits), "{what}: other bits than the first of its family");
            }
        }
    }
}

#[test]
fn a_gpu_gives_the_same_bits_again() {
    println!("seed {SEED}");
    for (name, driver) in drivers().into_iter().filter(|(name, _)| *name == "GPU") {
        for shape in all_shapes().into_iter().filter(|shape| !shape.is_stem()) {
            let case = Case::new(shape);
            for ending in case.endings() {
                let first = case.run(&driver, ending, Kernel::Chosen);
                let second = case.run(&driver, ending, Kernel::Chosen);
                assert!(first == second, "{shape:?}, {ending:?}, {name}");
            }
        }
    }
}

#[test]
fn no_block_and_no_grid_changes_a_result() {
    println!("seed {SEED}");
    let driver = hopper();
    let mut tried = 0;
    for shape in shapes(64, 1)
        .into_iter()
        .filter(|shape| wgmma::product(&*driver, Reduction::Whole, shape, Direction::Gradient).is_some())
    {
        let shape = ConvShape { batch: if shape.out_side() == 4 { 17 } else { 5 }, ..shape };
        let case = Case::new(shape);
        for ending in on_wgmma(&shape) {
            let mut families = Families::new();
            for planned in
                Block::ALL.into_iter().filter_map(|block| in_block(&shape, Direction::Gradient, block))
            {
                let block = planned.block;
                for most_blocks in [2 * block.parts(), usize::MAX] {
                    let bits = case.run(&driver, ending, Kernel::Planned(Planned { most_blocks, ..planned }));
                    let what = format!("{shape:?}, {ending:?}, {block:?}, at most {most_blocks} blocks");
                    case.check(&what, ending, &bits);
                    let family = if block.splits() { "split" } else { "whole" };
                    assert!(families.agree(family, bits), "{what}: another block, other bits");
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 80 || switched_off() != WgmmaOff::NONE, "{tried}");
}

#[test]
fn every_block_goes_from_work_to_work_and_gives_the_same_bits_in_every_order() {
    println!("seed {SEED}");
    for shape in shapes(64, 1).into_iter().filter(|shape| !shape.is_stem()) {
        let (shape, plans) = in_one_block(shape, Direction::Gradient);
        if plans.is_empty() {
            continue;
        }
        let case = Case::new(shape);
        for ending in on_wgmma(&shape) {
            for &planned in &plans {
                let mut families = Families::new();
                for (name, driver) in wgmma_drivers() {
                    let what = format!("{shape:?}, {ending:?}, {:?}, {name}", planned.block);
                    let bits = case.run(&driver, ending, Kernel::Planned(planned));
                    case.check(&what, ending, &bits);
                    assert!(families.agree(name, bits), "{what}: other bits than in the first order");
                }
            }
        }
    }
}

#[test]
fn the_tile_never_changes_a_bit() {
    println!("seed {SEED}");
    for shape in all_shapes().into_iter().filter(|shape| shape.in_channels >= 64 && shape.in_side <= 16) {
        let case = Case::new(shape);
        for ending in case.endings() {
            for (name, driver) in drivers() {
                let reference = case.run(&driver, ending, Kernel::Tile(Tile::Columns64));
                case.check(&format!("{shape:?}, {ending:?}, {name}, 64"), ending, &reference);
                for tile in Tile::ALL.into_iter().filter(|tile| shape.in_channels % tile.columns() == 0) {
                    let bits = case.run(&driver, ending, Kernel::Tile(tile));
                    assert!(bits == reference, "{shape:?}, {ending:?}, {name}, {tile:?}");
                }
            }
        }
    }
}

#[test]
fn what_has_no_gradient_of_this_kind_is_refused() {
    let (_, driver) = drivers().remove(0);
    let memory = poisoned::<u8>(&driver, "anything", 16).address();
    let product = |shape| Product { shape, from: memory, weights: memory, to: memory };
    let none = InputGradientEpilogue::default();
    let stem = shapes(16, 1)[0];
    let error = launch_input_gradient(&*driver, Reduction::Whole, product(&stem), &none).unwrap_err();
    assert!(error.to_string().contains("image_gradient"), "{error}");

    let shortcut = shapes(16, 1).into_iter().find(|shape| shape.kernel == 1).unwrap();
    let masked = InputGradientEpilogue { residual: None, mask: Some(Mask::plain(memory)) };
    let error = launch_input_gradient(&*driver, Reduction::Whole, product(&shortcut), &masked).unwrap_err();
    assert!(error.to_string().contains("compact"), "{error}");

    // Neither mma.sync nor a strided gradient takes a mask in fragments.
    let fragments = Mask { address: memory, order: MaskOrder::Fragments };
    let masked = InputGradientEpilogue { residual: None, mask: Some(fragments) };
    let plain = shapes(16, 1)[1];
    let strided = shapes(64, 1).into_iter().find(|shape| shape.stride == 2 && shape.kernel == 3).unwrap();
    for (driver, shape) in [(&driver, &plain), (&HostDriver::hopper(), &strided)] {
        let error = launch_input_gradient(&**driver, Reduction::Whole, product(shape), &masked).unwrap_err();
        assert!(error.to_string().contains("expected a plain one"), "{error}");
    }
}
