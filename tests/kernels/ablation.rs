//! The variants of the convolution kernels: predictions without a device, each on the emulated Hopper, and im2col mode against the oracle.

#[path = "../../benches/ablation/bench.rs"]
mod bench;

use crate::common::conv::*;
use std::process::Command;

use bench::im2col::{self, Relu};
use bench::variants::{VARIANTS, Variant};
use clap::Parser;
use half::bf16;
use secateur::cuda::launch::conv::wgmma::{Block, Direction, Planned};
use secateur::cuda::launch::conv::{ConvShape, InputGradientEpilogue, MaskOrder, Product};
use secateur::engine::Error;
use secateur::measure::predict::wgmma::{Epilogue, predict};

/// What the command prints.
fn ablation(args: &[&str]) -> anyhow::Result<String> {
    let args = bench::Args::try_parse_from([&["ablation"], args].concat())?;
    let mut out = String::new();
    bench::run(&args, &mut |line| out += &format!("{line}\n"))?;
    Ok(out)
}

#[test]
fn predictions_need_no_device_and_fall_from_variant_to_variant() {
    let out = ablation(&["--dry-run", "--filter", "layer1.0.conv1 forward"]).unwrap();
    let rates: Vec<f64> = out
        .lines()
        .filter(|line| line.contains("im2col") || line.contains("planes"))
        .filter(|line| !line.contains("64x256"))
        .map(|line| {
            let cells: Vec<&str> = line.split_whitespace().collect();
            cells[cells.len() - 2].parse().unwrap()
        })
        .collect();
    assert_eq!(rates.len(), 4, "{out}");
    assert!(rates.is_sorted() && rates[3] > 1.5 * rates[0] && rates[3] < 990.0, "{out}");
    assert!(out.contains("cache") && out.contains("tensor"), "{out}");
}

#[test]
fn im2col_is_bound_by_the_cache_and_planes_by_the_tensor_cores() {
    for (side, channels) in [(32, 64), (16, 128), (8, 256), (4, 512)] {
        let shape = ConvShape {
            batch: 512,
            in_side: side,
            in_channels: channels,
            out_channels: channels,
            kernel: 3,
            stride: 1,
        };
        let of = |(_, variant): &(&str, Variant)| {
            let planned = variant.plan(&shape, Direction::Forward, |_| true).unwrap();
            predict(&planned, Epilogue::Relu { residual: false, mask: MaskOrder::Plain })
        };
        // Im2col and planes, each without and with a persistent grid.
        let predictions: Vec<_> = VARIANTS[1..5].iter().map(of).collect();
        assert_eq!(predictions[0].bound, "cache", "{side}");
        assert_eq!(predictions[3].bound, "tensor", "{side}");
        assert!(predictions.is_sorted_by(|a, b| a.seconds >= b.seconds), "{side}: {predictions:?}");
    }
}

#[test]
fn every_variant_runs_on_the_emulated_hopper() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ablation.json");
    let json = file.to_str().unwrap();
    let small = ["--device", "emulated:sm_90a", "--batch", "1", "--samples", "1", "--timeout", "0"];
    let more = ["--filter", r"layer[24]\.0\.conv2", "--json", json];
    let out = ablation(&[&small[..], &more].concat()).unwrap();
    let read: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let rows = read["rows"].as_array().unwrap();
    assert_eq!(read["finished"], true);
    // Two layers, forward and back, on mma, four variants of wgmma and two blocks: 16 x 16 images of 128 channels, 4 x 4 of 512.
    assert_eq!(rows.len(), 28, "{out}");
    for row in rows {
        assert!(row["median"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!(row["flops"].as_f64().unwrap(), 2.0 * 256.0 * 9.0 * 128.0 * 128.0, "{row}");
    }
}

#[test]
fn what_has_no_variants_says_so() {
    for (args, expected, of_device) in [
        (vec!["--device", "emulated"], "no wgmma", true),
        (vec!["--device", "cpu"], "launches no kernels", true),
        (vec!["--dry-run", "--width", "24"], "width 24", false),
        (vec!["--dry-run", "--filter", "layer9"], "matches no row", false),
    ] {
        let error = ablation(&args).unwrap_err();
        assert!(error.to_string().contains(expected), "{args:?}: {error}");
        let unavailable = matches!(error.downcast_ref(), Some(Error::Unavailable(_)));
        assert_eq!(unavailable, of_device, "{args:?}: {error}");
    }
}

/// Every 3 x 3 convolution of the network that wgmma serves, with a last group of pixels that is cut short.
fn served() -> impl Iterator<Item = ConvShape> {
    let shapes = shapes(64, 1).into_iter().filter(|shape| shape.kernel == 3 && !shape.is_stem());
    shapes.map(|shape| ConvShape { batch: if shape.out_side() == 4 { 17 } else { 5 }, ..shape })
}

/// The plans of im2col mode: each block, from work to work and a block a work.
fn plans(shape: &ConvShape, direction: Direction) -> Vec<Planned> {
    let of = |block| im2col::plan(shape, direction, |any| any == block);
    let both = |planned| [2, usize::MAX].map(|most_blocks| Planned { most_blocks, ..planned });
    Block::ALL.into_iter().filter_map(of).flat_map(both).collect()
}

#[test]
fn im2col_agrees_with_the_oracle_forward() {
    println!("seed {SEED}");
    let driver = hopper();
    let mut tried = 0;
    for shape in served() {
        let (x, w) = (halves(1, shape.input_len(), 1.0), weights(2, &shape));
        let (bias, residual) = (numbers(3, shape.out_channels, 0.5), halves(4, shape.output_len(), 1.0));
        let sums = forward(&shape, &x, &w);
        let added = |i: usize| f64::from(bias[i % shape.out_channels]) + residual[i].to_f64();
        let expected: Vec<f64> =
            (0..shape.output_len()).map(|i| (sums.value[i] + added(i)).max(0.0)).collect();
        let bound = |i: usize| {
            let error = sums.error(i) + 2f64.powi(-22) * (sums.value[i].abs() + added(i).abs() + 1.0);
            half_ulp(expected[i]) + 1.01 * error
        };
        let (x, w) = (upload(&driver, "x", &x), upload(&driver, "w", &w));
        let (bias, residual) = (upload(&driver, "bias", &bias), upload(&driver, "residual", &residual));
        let mut first: Option<(Vec<u16>, Vec<u8>)> = None;
        for planned in plans(&shape, Direction::Forward) {
            let output = poisoned::<bf16>(&driver, "output", shape.output_len());
            let mask = poisoned::<u8>(&driver, "mask", shape.output_len() / 8);
            let relu =
                Relu { bias: bias.address(), residual: Some(residual.address()), mask: mask.address() };
            let (from, weights, to) = (x.address(), w.address(), output.address());
            let product = Product { shape: &shape, from, weights, to };
            im2col::forward(&*driver, &planned, product, relu).unwrap();
            let what = format!("{shape:?}, {:?}, at most {} blocks", planned.block, planned.most_blocks);
            let actual: Vec<bf16> = output.to_vec().unwrap();
            let mask: Vec<u8> = mask.to_vec().unwrap();
            check(&what, &from_halves(&actual), &expected, bound, WHOLE_BF16);
            for (i, value) in actual.iter().enumerate() {
                assert_eq!(mask[i / 8] >> (i % 8) & 1 == 1, *value > bf16::ZERO, "{what}: mask of {i}");
            }
            let bits = (actual.iter().map(|value| value.to_bits()).collect(), mask);
            assert!(*first.get_or_insert_with(|| bits.clone()) == bits, "{what}: another block, other bits");
            tried += 1;
        }
    }
    assert!(tried > 20, "{tried}");
}

#[test]
fn im2col_agrees_with_the_oracle_backward() {
    println!("seed {SEED}");
    let driver = hopper();
    let mut tried = 0;
    for shape in served().filter(|shape| shape.stride == 1) {
        let (dy, w) = (halves(11, shape.output_len(), 1.0), weights(12, &shape));
        let residual = halves(13, shape.input_len(), 1.0);
        let sums = input_gradient(&shape, &dy, &w);
        let expected: Vec<f64> =
            sums.value.iter().zip(&residual).map(|(sum, residual)| sum + residual.to_f64()).collect();
        let bound = |i: usize| {
            half_ulp(expected[i]) + 1.01 * (sums.error(i) + 2f64.powi(-22) * (expected[i].abs() + 1.0))
        };
        let (dy, w) = (upload(&driver, "dy", &dy), upload(&driver, "w", &w));
        let residual = upload(&driver, "residual", &residual);
        let epilogue = InputGradientEpilogue { residual: Some(residual.address()), mask: None };
        let mut first: Option<Vec<u16>> = None;
        for planned in plans(&shape, Direction::Gradient) {
            let target = poisoned::<bf16>(&driver, "dx", shape.input_len());
            let (from, weights, to) = (dy.address(), w.address(), target.address());
            let product = Product { shape: &shape, from, weights, to };
            im2col::input_gradient(&*driver, &planned, product, &epilogue).unwrap();
            let what = format!("{shape:?}, {:?}, at most {} blocks", planned.block, planned.most_blocks);
            let actual: Vec<bf16> = target.to_vec().unwrap();
            check(&what, &from_halves(&actual), &expected, bound, WHOLE_BF16);
            let bits: Vec<u16> = actual.iter().map(|value| value.to_bits()).collect();
            assert!(*first.get_or_insert_with(|| bits.clone()) == bits, "{what}: another block, other bits");
            tried += 1;
        }
    }
    assert!(tried > 12, "{tried}");
}

#[test]
fn the_gpu_session_asks_for_what_the_bench_takes() {
    let script = r#"
import json, sys, types
from pathlib import Path
sys.path.insert(0, "scripts")
from qualify import stages
session = types.SimpleNamespace(size=stages.FULL, device="cuda:99", folder=Path("."), left=lambda: 100)
commands = [list(map(str, job.command)) for job in stages.kernels(session)]
print(json.dumps([command[1:] for command in commands if command[0] == stages.ABLATION]))
"#;
    let output = Command::new("python3").args(["-B", "-c", script]).output().unwrap();
    let commands: Vec<Vec<String>> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!commands.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    for command in commands {
        let parse = |words: &[String]| {
            let words = [&["ablation".to_string()], words].concat();
            bench::Args::try_parse_from(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
        };
        parse(&command);
        let json = command.iter().position(|word| word == "--json").unwrap();
        let dry = [&command[..json], &command[json + 2..], &["--dry-run".to_string()]].concat();
        let mut lines = String::new();
        bench::run(&parse(&dry), &mut |line| lines += line).unwrap();
        for layer in 1..=4 {
            assert!(lines.contains(&format!("layer{layer}.")), "nothing of layer {layer}:\n{lines}");
        }
    }
}
