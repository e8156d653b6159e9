//! What is switched off of the kernels for Hopper is not launched, what takes over is right, and every bench says so; and a wait of
//! theirs that does not end is an error that says where.

use std::path::Path;
use std::rc::Rc;

use secateur::cuda::driver::Driver;
use secateur::cuda::driver::dry::DryDriver;
use secateur::cuda::driver::host::{HostDriver, HostOptions};
use secateur::cuda::driver::record::Recorder;
use secateur::cuda::launch::conv::wgmma::{self, Block, Direction};
use secateur::cuda::launch::conv::{
    self, ConvShape, ForwardEpilogue, InputGradientEpilogue, Product, Reduction, weight_gradient_workspace,
};
use secateur::engine::{DeviceOptions, Error, WgmmaOff, WgmmaSwitch};
use secateur::names::Named;

use crate::common::conv::*;
use crate::common::program::{self, Done};

fn without(switch: Option<WgmmaSwitch>) -> DeviceOptions {
    let wgmma_off = switch.map_or(WgmmaOff::NONE, |switch| WgmmaOff::NONE.with(switch));
    DeviceOptions { wgmma_off, ..DeviceOptions::default() }
}

/// Output, input gradient and weight gradient of a convolution of random numbers, as the launch code chooses to compute them.
fn convolve(driver: &Rc<dyn Driver>, shape: &ConvShape) -> [Vec<f64>; 3] {
    let (x, w, dy) = operands(shape);
    let (x, w, dy) = (upload(driver, "x", &x), upload(driver, "w", &w), upload(driver, "dy", &dy));
    let bias = upload(driver, "bias", &vec![0f32; shape.out_channels]);
    let y = poisoned::<u16>(driver, "y", shape.output_len());
    let dx = poisoned::<u16>(driver, "dx", shape.input_len());
    let workspace = poisoned::<f32>(driver, "workspace", weight_gradient_workspace(shape));
    let dw = poisoned::<f32>(driver, "dw", shape.weight_len());
    let (x, w, dy) = (x.address(), w.address(), dy.address());
    let epilogue = ForwardEpilogue::Bias { bias: bias.address() };
    let product = |from, to| Product { shape, from, weights: w, to };
    conv::forward(&**driver, Reduction::Split, product(x, y.address()), &epilogue).unwrap();
    let (back, none) = (product(dy, dx.address()), InputGradientEpilogue::default());
    conv::input_gradient(&**driver, Reduction::Split, back, &none).unwrap();
    conv::weight_gradient(&**driver, shape, x, dy, workspace.address(), dw.address(), false).unwrap();
    let halves = |buffer: &secateur::cuda::driver::Buffer| from_halves(&buffer.to_vec().unwrap());
    [halves(&y), halves(&dx), from_floats(&dw.to_vec().unwrap())]
}

fn operands(shape: &ConvShape) -> (Vec<half::bf16>, Vec<half::bf16>, Vec<half::bf16>) {
    (halves(51, shape.input_len(), 1.0), weights(52, shape), halves(53, shape.output_len(), 1.0))
}

/// Whether a switch is for the kernel with this symbol.
fn concerns(switch: WgmmaSwitch, kernel: &str) -> bool {
    let Some((operation, block)) = kernel.split_once("_wgmma_") else { return false };
    match switch {
        WgmmaSwitch::All => true,
        WgmmaSwitch::Forward => operation.starts_with("conv_forward"),
        WgmmaSwitch::InputGradient => operation == "conv_input_gradient",
        WgmmaSwitch::WeightGradient => operation == "conv_weight_gradient",
        WgmmaSwitch::Split => block == "64x256_split",
        block_of_that_name => block == block_of_that_name.name(),
    }
}

/// The kernels that a dry Hopper launches for every 3 x 3 convolution that wgmma serves, in batches of a training step.
fn launched(options: DeviceOptions) -> Vec<&'static str> {
    let (driver, mut recording) = Recorder::wrap(DryDriver::with(options));
    recording.start(false).unwrap();
    for batch in [128, 512] {
        for shape in shapes(64, batch).iter().filter(|shape| shape.kernel == 3 && !shape.is_stem()) {
            convolve_dry(&driver, shape);
        }
    }
    recording.stop().unwrap().launches.iter().map(|launch| launch.kernel).collect()
}

/// [`convolve`] without numbers.
fn convolve_dry(driver: &Rc<dyn Driver>, shape: &ConvShape) {
    let any = driver.alloc("any", 1 << 30).unwrap();
    let epilogue = ForwardEpilogue::Statistics { partials: any };
    let product = Product { shape, from: any, weights: any, to: any };
    conv::forward(&**driver, Reduction::Split, product, &epilogue).unwrap();
    conv::input_gradient(&**driver, Reduction::Split, product, &InputGradientEpilogue::default()).unwrap();
    conv::weight_gradient(&**driver, shape, any, any, any, any, false).unwrap();
}

#[test]
fn a_switch_takes_away_its_kernels_and_no_others() {
    let all = launched(without(None));
    for &(_, switch) in WgmmaSwitch::ALL {
        let left = launched(without(Some(switch)));
        assert_eq!(left.len(), all.len());
        let mut replaced = 0;
        for (before, after) in all.iter().zip(&left) {
            assert!(!concerns(switch, after), "{}: {after}", switch.name());
            if !concerns(switch, before) {
                assert_eq!(before, after, "{}", switch.name());
                continue;
            }
            replaced += 1;
            // Another block of the same operation takes over where the operation is on, else mma.sync.
            let block = WgmmaSwitch::ALL[4..].contains(&(switch.name(), switch));
            let family = if block { "_wgmma_" } else { "_mma_" };
            assert!(after.contains(family), "{}: {after} in place of {before}", switch.name());
        }
        assert!(replaced > 0, "{} is the switch of no kernel", switch.name());
    }
}

#[test]
fn whatever_takes_over_is_right() {
    let of = |in_side, in_channels, out_channels, stride| ConvShape {
        batch: 1,
        in_side,
        in_channels,
        out_channels,
        kernel: 3,
        stride,
    };
    for shape in [of(32, 64, 64, 1), of(16, 128, 256, 2), of(4, 512, 512, 1)] {
        let (x, w, dy) = operands(&shape);
        let sums =
            [forward(&shape, &x, &w), input_gradient(&shape, &dy, &w), weight_gradient(&shape, &x, &dy)];
        let mut first = None;
        for switch in std::iter::once(None).chain(WgmmaSwitch::ALL.iter().map(|(_, switch)| Some(*switch))) {
            let options = HostOptions { hopper: true, device: without(switch), ..HostOptions::default() };
            let what = format!("{shape:?} without {}", switch.map_or("nothing", WgmmaSwitch::name));
            let actual = convolve(&HostDriver::with(options), &shape);
            for (at, (actual, sums)) in actual.iter().zip(&sums).enumerate() {
                let rounding = |i: usize| if at < 2 { half_ulp(sums.value[i]) } else { 0.0 };
                let bound = |i: usize| rounding(i) + 1.01 * sums.error(i);
                check(&what, actual, &sums.value, bound, if at < 2 { WHOLE_BF16 } else { WHOLE_F32 });
            }
            first.get_or_insert(actual);
        }
        // To fetch maps ahead changes no bit.
        let device = DeviceOptions { prefetch_maps: false, ..without(None) };
        let driver = HostDriver::with(HostOptions { hopper: true, device, ..HostOptions::default() });
        assert!(first == Some(convolve(&driver, &shape)), "{shape:?}: other bits without prefetched maps");
    }
}

#[test]
fn a_wait_of_a_convolution_that_does_not_end_names_kernel_barrier_and_block() {
    let driver = HostDriver::hopper();
    for (block, side, channels) in [
        (Block::Resident, 32, 64),
        (Block::Long, 32, 64),
        (Block::Small, 32, 64),
        (Block::Wide, 16, 128),
        (Block::Split, 16, 128),
    ] {
        let shape = ConvShape {
            batch: 1,
            in_side: side,
            in_channels: channels,
            out_channels: channels,
            kernel: 3,
            stride: 1,
        };
        for direction in Direction::ALL {
            let mut planned = in_block(&shape, direction, block).unwrap();
            // The producer announces more bytes than its loads bring.
            planned.plan.slot_bytes += 128;
            let x = upload(&driver, "x", &halves(51, shape.input_len(), 1.0));
            let w = upload(&driver, "w", &weights(52, &shape));
            let bias = upload(&driver, "bias", &vec![0f32; channels]);
            let to = poisoned::<u16>(&driver, "to", shape.output_len());
            let (from, weights, to) = (x.address(), w.address(), to.address());
            let product = Product { shape: &shape, from, weights, to };
            let done = match direction {
                Direction::Forward => {
                    let epilogue = ForwardEpilogue::Bias { bias: bias.address() };
                    wgmma::forward(&*driver, &planned, product, &epilogue)
                }
                Direction::Gradient => {
                    wgmma::input_gradient(&*driver, &planned, product, &InputGradientEpilogue::default())
                }
            };
            let Err(Error::Kernel { kernel, message }) = done else {
                panic!("{block:?}, {direction:?}: {done:?}")
            };
            let operation = ["conv_forward_bias", "conv_input_gradient"][direction as usize];
            assert_eq!(kernel, format!("{operation}_wgmma_{}", block.name()));
            // The producer waits for a free slot where the ring is shorter than the reduction.
            let waits = |barrier: &str| {
                message.contains(&format!(": barrier {barrier}: waited for more than 1 s; deadlock: "))
            };
            assert!(message.starts_with("block (0, 0, 0), thread "), "{block:?}, {direction:?}: {message}");
            assert!(
                ["pixels_full", "pixels_empty", "weights_empty"].into_iter().any(waits),
                "{block:?}, {direction:?}: {message}"
            );
            let missing = format!(", {} bytes missing", 128 * block.groups().1);
            assert!(message.contains(&missing), "{block:?}, {direction:?}: {message}");
        }
    }
}

fn secateur(switches: &str, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = program::command(Path::new("."), args);
    Done::from(command.env("SECATEUR_WGMMA", switches).output().unwrap()).parts()
}

#[test]
fn a_switch_that_does_not_exist_is_refused() {
    for args in [
        &["bench", "attack", "--device", "emulated:sm_90a"][..],
        &["bench", "model"],
        &["profile", "--recipe", "quick", "--device", "cuda"],
    ] {
        let (code, out, err) = secateur("forward,weight_gradient", args);
        assert_eq!((code, out.as_str(), err.lines().count()), (Some(2), "", 1), "{args:?}: {err}");
        let expected = "SECATEUR_WGMMA=forward,weight_gradient: 'weight_gradient' is none of off, forward, input-gradient, \
                      weight-gradient, resident, 128x256, 64x512, 64x256, split";
        assert!(err.contains(expected), "{args:?}: {err}");
    }
}

#[test]
fn what_is_off_and_what_is_predicted_stand_beside_what_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("attack.json");
    let csv = folder.path().join("attack.csv");
    let args =
        ["bench", "attack", "--device", "emulated:sm_90a", "--recipe", "cifar10-pgd-at", "--width", "16"];
    let small = ["--batch", "1", "--set", "attack.steps=1", "--samples", "1", "--timeout", "0"];
    let options = ["--prefetch-maps", "off", "--carve-out", "off", "--dependent-launch", "off"];
    let files = ["--json", file.to_str().unwrap(), "--csv", csv.to_str().unwrap()];
    let (code, out, err) =
        secateur("split,forward", &[&args[..], &small[..], &options[..], &files[..]].concat());
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("(emulated, host, wgmma off: forward, split)"), "{out}");
    assert!(out.contains("predicted, H200"), "{out}");
    let read: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(read["device"]["wgmma_off"], serde_json::json!(["forward", "split"]));
    let predicted = read["rows"][0]["predicted"].as_f64().unwrap();
    // About forty launches, of a few microseconds each.
    assert!((50e-6..200e-6).contains(&predicted), "{predicted}");
    let text = std::fs::read_to_string(&csv).unwrap();
    assert!(text.lines().next().unwrap().ends_with(",calls,predicted_seconds"), "{text}");
    assert!(text.trim_end().ends_with(&format!(",{predicted}")), "{text}");

    // Where nothing stands for a Hopper there is neither.
    let args = ["bench", "attack", "--device", "emulated", "--recipe", "cifar10-pgd-at", "--width", "16"];
    let (code, out, err) = secateur("split,forward", &[&args[..], &small[..]].concat());
    assert_eq!(code, Some(0), "{err}");
    assert!(!out.contains("wgmma off") && !out.contains("predicted"), "{out}");
}

#[test]
fn a_run_writes_down_what_was_off() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut args =
        vec!["train", "--recipe", "quick", "--device", "emulated:sm_90a", "--out", run.to_str().unwrap()];
    for set in [
        "epochs=1",
        "batch=2",
        "data.train_limit=4",
        "data.validation=0",
        "data.test_limit=2",
        "attack.steps=1",
        "evaluation.samples=2",
        "evaluation.protocols=['clean']",
        "evaluation.best_by=clean",
    ] {
        args.extend(["--set", set]);
    }
    let (code, _, err) = secateur("input-gradient", &args);
    assert_eq!(code, Some(0), "{err}");
    let read = std::fs::read_to_string(run.join("environment.json")).unwrap();
    let compact: String = read.split_whitespace().collect();
    assert!(compact.contains(r#""wgmma_off":["input-gradient"]"#), "{read}");
}
