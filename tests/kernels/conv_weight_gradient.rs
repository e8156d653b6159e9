//! Weight gradient kernels and their reduction against an f64 oracle: every shape of the network, every driver.

use std::rc::Rc;

use half::bf16;
use secateur::cuda::driver::Driver;
use secateur::cuda::driver::host::HostDriver;
use secateur::cuda::launch::conv::wgmma::{self, Direction, Planned};
use secateur::cuda::launch::conv::{
    ConvShape, Reduction, weight_gradient as launch_weight_gradient, weight_gradient_workspace,
};

use crate::common::conv::*;

struct Case {
    shape: ConvShape,
    input: Vec<bf16>,
    output_gradient: Vec<bf16>,
    expected: Vec<f64>,
    error: Vec<f64>,
}

impl Case {
    fn new(shape: ConvShape) -> Self {
        let input = halves(31, shape.input_len(), 1.0);
        let output_gradient = halves(32, shape.output_len(), 1.0);
        let sums = weight_gradient(&shape, &input, &output_gradient);
        let error: Vec<f64> = (0..sums.value.len()).map(|i| sums.error(i)).collect();
        // The stem's gradient is of three channels: the hi and the lo part of each.
        let fold = |values: &[f64]| match shape.is_stem() {
            true => values.chunks(8).flat_map(|v| [v[0] + v[3], v[1] + v[4], v[2] + v[5]]).collect(),
            false => values.to_vec(),
        };
        Self { expected: fold(&sums.value), error: fold(&error), shape, input, output_gradient }
    }

    /// The gradient, added to `before` where given.
    fn run(&self, driver: &Rc<dyn Driver>, before: Option<&[f32]>) -> Vec<f32> {
        let input = upload(driver, "input", &self.input);
        let output_gradient = upload(driver, "output gradient", &self.output_gradient);
        let workspace = poisoned::<f32>(driver, "workspace", weight_gradient_workspace(&self.shape));
        let gradient = match before {
            Some(before) => upload(driver, "weight gradient", before),
            None => poisoned::<f32>(driver, "weight gradient", self.expected.len()),
        };
        launch_weight_gradient(
            &**driver,
            &self.shape,
            input.address(),
            output_gradient.address(),
            workspace.address(),
            gradient.address(),
            before.is_some(),
        )
        .unwrap();
        gradient.to_vec().unwrap()
    }

    fn check_all(&self) {
        let shape = &self.shape;
        let before = numbers(33, self.expected.len(), 4.0);
        let sum: Vec<f64> = self.expected.iter().zip(&before).map(|(w, b)| w + f64::from(*b)).collect();
        let hopper =
            wgmma::product(&*HostDriver::hopper(), Reduction::Whole, shape, Direction::Forward).is_some();
        let mut families = Families::new();
        for (name, driver) in conv_drivers(hopper) {
            let what = format!("{shape:?}, {name}");
            let actual = self.run(&driver, None);
            check(&what, &from_floats(&actual), &self.expected, |i| self.error[i], WHOLE_F32);
            assert!(name != "GPU" || self.run(&driver, None) == actual, "{what}: the second run differs");
            assert!(families.agree(name, actual), "{what}: other bits than the first of its family");
            let added = self.run(&driver, Some(&before));
            let rounding = |i: usize| 2f64.powi(-23) * (sum[i].abs() + f64::from(before[i].abs()));
            check(
                &format!("{what}, accumulated"),
                &from_floats(&added),
                &sum,
                |i| self.error[i] + rounding(i),
                WHOLE_F32,
            );
        }
    }
}

#[test]
fn every_shape_agrees_with_the_oracle() {
    println!("seed {SEED}");
    for shape in all_shapes() {
        Case::new(shape).check_all();
    }
}

#[test]
fn uneven_parts_agree_with_the_oracle() {
    println!("seed {SEED}");
    // 25 and 25.5 slabs of 32 pixels in three parts; 42 slabs in the five parts that a wide layer leaves room for.
    let small = ConvShape { batch: 50, in_side: 4, in_channels: 64, out_channels: 64, kernel: 3, stride: 1 };
    Case::new(small).check_all();
    Case::new(ConvShape { batch: 51, in_channels: 16, out_channels: 16, ..small }).check_all();
    Case::new(ConvShape { batch: 51, in_side: 8, in_channels: 32, stride: 2, ..small }).check_all();
    Case::new(ConvShape { batch: 21, in_side: 8, in_channels: 256, out_channels: 256, ..small }).check_all();
}

#[test]
fn as_many_parts_as_a_large_batch_has_are_added_up() {
    println!("seed {SEED}");
    // Eight slabs of 32 pixels in each of 264 parts: no layer of any batch has more.
    let shape = ConvShape { batch: 66, in_side: 64, in_channels: 16, out_channels: 16, kernel: 1, stride: 2 };
    assert_eq!(weight_gradient_workspace(&shape), 264 * shape.weight_len());
    Case::new(shape).check_all();
}

#[test]
fn a_block_goes_from_group_to_group() {
    println!("seed {SEED}");
    // Seven or eight groups of pixels for each block, more than its rings have slots; both kernels, slots of three, two and one tap.
    let first = ConvShape { batch: 2, in_side: 32, in_channels: 64, out_channels: 64, kernel: 3, stride: 1 };
    let strided = ConvShape { batch: 16 * 7 - 3, in_side: 8, out_channels: 128, stride: 2, ..first };
    let last = ConvShape { in_side: 4, in_channels: 128, stride: 1, ..strided };
    for shape in [first, strided, ConvShape { kernel: 1, ..strided }, last] {
        let case = Case::new(shape);
        let whole = wgmma::plan(&shape, Direction::Forward, |block| !block.splits()).unwrap();
        let planned = Planned { most_blocks: 1, ..whole };
        let mut families = Families::new();
        for (name, driver) in wgmma_drivers() {
            if wgmma::weight_product(&*driver, &shape).is_none() {
                continue;
            }
            let input = upload(&driver, "input", &case.input);
            let output_gradient = upload(&driver, "output gradient", &case.output_gradient);
            let workspace = poisoned::<f32>(&driver, "workspace", 2 * shape.weight_len());
            let parts = wgmma::weight_gradient_parts(
                &*driver,
                &planned,
                &shape,
                input.address(),
                output_gradient.address(),
                workspace.address(),
            )
            .unwrap();
            assert_eq!(parts, if shape.out_channels == 64 { 2 } else { 1 }, "{shape:?}: one block a sum");
            let actual: Vec<f32> = workspace.to_vec().unwrap();
            let element = |i: usize| actual[i..].iter().step_by(shape.weight_len()).take(parts);
            let sums: Vec<f64> =
                (0..shape.weight_len()).map(|i| element(i).map(|v| f64::from(*v)).sum()).collect();
            let what = format!("{shape:?}, {name}");
            let whole = whole_f32(shape.output_rows() / parts);
            check(&what, &sums, &case.expected, |i| case.error[i], whole);
            let bits: Vec<u32> = actual.iter().map(|v| v.to_bits()).collect();
            assert!(families.agree(name, bits), "{what}: other bits than in the first order");
        }
    }
}

#[test]
fn a_smaller_batch_needs_no_more_workspace() {
    for width in [16, 64] {
        for shape in shapes(width, 1) {
            let needs: Vec<usize> =
                (1..=1024).map(|batch| weight_gradient_workspace(&ConvShape { batch, ..shape })).collect();
            assert!(needs.is_sorted(), "{shape:?}: {needs:?}");
        }
    }
}
