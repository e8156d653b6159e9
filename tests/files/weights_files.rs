//! Weights files: what is written is read back, and a file that is not the weights of a network is refused.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use safetensors::tensor::{Dtype, TensorView};
use secateur::files::Existing;
use secateur::model::{ResNet, Weights, WeightsError, initialise};

use crate::common::program;

const SEED: u64 = 5;
const NETWORK: ResNet = ResNet::resnet18(16, 10);
static GOOD: LazyLock<(Weights, Vec<u8>)> = LazyLock::new(|| {
    let weights = initialise(NETWORK, SEED);
    let bytes = weights.to_bytes();
    (weights, bytes)
});

/// A safetensors file made by hand: the length of the header, the header, the data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

#[test]
fn weights_survive_the_way_through_a_file() {
    println!("seed {SEED}");
    let folder = tempfile::tempdir().unwrap();
    let networks = [
        NETWORK,
        ResNet::resnet18(16, 100),
        ResNet::resnet18(64, 10),
        ResNet::resnet18(32, 10),
        ResNet::resnet34(16, 10),
    ];
    for network in networks {
        let path = folder.path().join(format!("{network}.safetensors"));
        let weights = initialise(network, SEED);
        weights.write(&path, Existing::Refuse).unwrap();
        let (actual, read) = Weights::read_network(&path).unwrap();
        assert_eq!(actual, network);
        assert_eq!(read, weights);
        assert_eq!(weights.to_bytes(), fs::read(&path).unwrap(), "the same weights give the same bytes");
        assert!(weights.write(&path, Existing::Refuse).is_err());
        weights.write(&path, Existing::Replace).unwrap();
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), networks.len(), "no temporary file stays");
}

#[test]
fn a_file_from_pytorch_may_hold_batch_counters() {
    let header = r#"{"__metadata__":{"format":"pt"},"bn1.num_batches_tracked":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#;
    let mut data = 7i64.to_le_bytes().to_vec();
    data.extend(1.5f32.to_le_bytes());
    data.extend((-2.0f32).to_le_bytes());
    let weights = Weights::from_bytes(&file(header, &data)).unwrap();
    assert_eq!(weights.tensors.len(), 1);
    assert_eq!(weights.get("a", &[2]).unwrap(), [1.5, -2.0]);
}

#[test]
fn check_names_what_is_wrong() {
    let good = &GOOD.0;
    good.check(&NETWORK).unwrap();
    let refused = |change: &dyn Fn(&mut Weights)| {
        let mut weights = good.clone();
        change(&mut weights);
        weights.check(&NETWORK).unwrap_err().to_string()
    };
    let error = refused(&|w| drop(w.tensors.remove("layer3.1.bn2.bias")));
    assert_eq!(error, "layer3.1.bn2.bias: missing from the weights");
    let error = refused(&|w| w.insert("linear.bias", &[5], vec![0.0; 5]));
    assert_eq!(error, "linear.bias: shape [5], expected [10]");
    let error = refused(&|w| w.tensors.get_mut("conv1.weight").unwrap().values[3] = f32::NAN);
    assert!(error.starts_with("conv1.weight[3]: NaN, expected a finite number;"), "{error}");
    let error = refused(&|w| w.tensors.get_mut("bn1.running_var").unwrap().values[15] = -0.5);
    assert!(error.starts_with("bn1.running_var[15]: -0.5, expected a finite number >= 0;"), "{error}");
    let error = refused(&|w| w.insert("layer5.0.conv1.weight", &[1], vec![0.0]));
    assert!(
        error.starts_with("layer5.0.conv1.weight: not a tensor of this network (ResNet-18, width 16, 10"),
        "{error}"
    );
    let error = good.check(&ResNet::resnet18(64, 10)).unwrap_err().to_string();
    assert_eq!(error, "conv1.weight: shape [16, 3, 3, 3], expected [64, 3, 3, 3]");

    // Names as DataParallel saves them.
    let mut wrapped = Weights::default();
    for (name, tensor) in &good.tensors {
        wrapped.insert(format!("module.{name}"), &tensor.shape, tensor.values.clone());
    }
    let error = wrapped.infer_network().unwrap_err().to_string();
    let expected = "conv1.weight: missing from the weights; found instead: module.bn1.bias, module.bn1.running_mean, \
                  module.bn1.running_var and 99 more (module.* is *); `secateur weights convert FILE OUT` renames them";
    assert_eq!(error, expected);
}

#[test]
fn networks_without_kernels_are_refused() {
    let mut weights = Weights::default();
    weights.insert("conv1.weight", &[48, 3, 3, 3], vec![0.0; 1296]);
    let error = weights.infer_network().unwrap_err().to_string();
    assert_eq!(
        error,
        "conv1.weight has 48 output channels, expected 16 or 32 or 64 (the widths that have kernels)"
    );
    weights.insert("conv1.weight", &[], vec![0.0]);
    assert!(matches!(weights.infer_network(), Err(WeightsError::Width { actual: 0 })));
    weights.insert("conv1.weight", &[16, 3, 3, 3], vec![0.0; 432]);
    weights.insert("linear.weight", &[10, 512], vec![0.0; 5120]);
    let error = weights.infer_network().unwrap_err().to_string();
    assert_eq!(error, "linear.weight: shape [10, 512], expected [10, 128]");
}

#[test]
fn malformed_files_are_refused() {
    let one = |entry: &str, data: &[u8]| file(&format!("{{\"a\":{entry}}}"), data);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("no room for a header", vec![1, 2, 3]),
        ("huge header", [&u64::MAX.to_le_bytes()[..], b"{}"].concat()),
        ("header longer than the file", [&100u64.to_le_bytes()[..], b"{}"].concat()),
        ("not JSON", file("{a", b"")),
        ("not UTF-8", [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat()),
        ("data cut short", one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#, &[0; 4])),
        ("trailing bytes", one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#, &[0; 8])),
        ("offsets reversed", one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#, &[0; 4])),
        ("shape and offsets disagree", one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#, &[0; 8])),
        (
            "shape overflows",
            one(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}"#, &[0; 4]),
        ),
        ("unknown type", one(r#"{"dtype":"F31","shape":[1],"data_offsets":[0,4]}"#, &[0; 4])),
        (
            "overlap",
            file(
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
                &[0; 12],
            ),
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    for (what, bytes) in cases {
        fs::write(&path, bytes).unwrap();
        let error = Weights::read(&path).expect_err(what);
        assert!(matches!(error, WeightsError::Format { .. }), "{what}: {error}");
        assert!(error.to_string().starts_with(&path.display().to_string()), "{what}: {error}");
    }
    fs::write(&path, one(r#"{"dtype":"F16","shape":[2],"data_offsets":[0,4]}"#, &[0; 4])).unwrap();
    let error = Weights::read(&path).unwrap_err().to_string();
    assert!(
        error.contains("a: type F16, expected F32; `secateur weights convert FILE OUT` makes it so"),
        "{error}"
    );
    for (bytes, part) in [
        (&b"PK\x03\x04and the rest"[..], "expected a safetensors file, this is a PyTorch file"),
        (b"\x80\x02}q\x00.", "a PyTorch file (.pth, .pt) or another pickle; load it with torch.load"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = Weights::read(&path).unwrap_err().to_string();
        assert!(error.starts_with(&path.display().to_string()) && error.contains(part), "{error}");
    }
    let error = Weights::read(&folder.path().join("none")).unwrap_err().to_string();
    assert!(error.contains("none: "), "{error}");
}

/// Runs `secateur weights` and gives exit code, stdout and stderr.
fn weights_command(args: &[&str]) -> (i32, String, String) {
    let done = program::secateur(Path::new("."), ["weights"].iter().chain(args));
    (done.code.unwrap(), done.stdout, done.stderr)
}

#[test]
fn the_command_writes_checks_and_never_overwrites() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let file = path.to_str().unwrap();
    let init = ["init", "--dataset", "cifar100", "--width", "16", "--seed", "5", "--out", file];
    assert_eq!(weights_command(&init).0, 0);
    let network = ResNet::resnet18(16, 100);
    assert_eq!(Weights::read_network(&path).unwrap(), (network, initialise(network, 5)));
    let (code, _, error) = weights_command(&init);
    assert_eq!(code, 2);
    assert!(error.contains("exists already and is left alone"), "{error}");

    let (code, text, _) = weights_command(&["check", file]);
    assert_eq!(code, 0);
    let trainable =
        network.parameters().iter().filter(|p| p.kind.trainable()).map(|p| p.len()).sum::<usize>();
    assert!(text.contains("ResNet-18, width 16, 100 classes"), "{text}");
    assert!(text.contains(&format!("{trainable} parameters, 2400 running statistics")), "{text}");

    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let (code, _, error) = weights_command(&["check", file]);
    assert_eq!(code, 1, "a failed check");
    assert!(error.contains("not a whole safetensors file"), "{error}");
    let (code, _, error) = weights_command(&["check", "no/such/file"]);
    assert_eq!(code, 2);
    assert!(error.contains("no/such/file"), "{error}");
}

/// A tensor of any type: name, type, shape, bytes.
type Entry = (String, Dtype, Vec<usize>, Vec<u8>);

/// A safetensors file of these tensors.
fn tensors(tensors: &[Entry]) -> Vec<u8> {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn weights_of_other_programs_are_converted() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.safetensors"), folder.path().join("out.safetensors"));
    let (input, output) = (input.to_str().unwrap(), output.to_str().unwrap());
    // Values that every type holds.
    let mut good = initialise(NETWORK, SEED);
    for tensor in good.tensors.values_mut() {
        tensor
            .values
            .iter_mut()
            .for_each(|value| *value = bf16::from_f32(f16::from_f32(*value).to_f32()).to_f32());
    }
    for tensor in good.tensors.values_mut() {
        tensor.values.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32());
    }
    let foreign = |prefix: &str, dtype: Dtype| -> Vec<Entry> {
        let mut all = Vec::new();
        for (name, tensor) in &good.tensors {
            let name = name.replace("linear.", "fc.").replace("shortcut.", "downsample.");
            let bytes = tensor.values.iter().flat_map(|&value| match dtype {
                Dtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
                Dtype::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
                Dtype::F64 => f64::from(value).to_le_bytes().to_vec(),
                _ => value.to_le_bytes().to_vec(),
            });
            all.push((format!("{prefix}{name}"), dtype, tensor.shape.clone(), bytes.collect()));
        }
        all.push((format!("{prefix}bn1.num_batches_tracked"), Dtype::I64, vec![], vec![7; 8]));
        all
    };
    let convert = || weights_command(&["convert", input, output]);
    for (prefix, dtype) in
        [("", Dtype::F32), ("net.", Dtype::F16), ("module.", Dtype::BF16), ("model.module.", Dtype::F64)]
    {
        fs::write(input, tensors(&foreign(prefix, dtype))).unwrap();
        assert_ne!(weights_command(&["check", input]).0, 0);
        let (code, text, error) = convert();
        assert_eq!(code, 0, "{prefix} {dtype:?}: {error}");
        assert!(
            text.contains("num_batches_tracked dropped: 1 tensors") && text.contains("fc to linear"),
            "{text}"
        );
        assert_eq!(text.contains("stripped"), !prefix.is_empty(), "{text}");
        assert_eq!(text.contains("to F32"), dtype != Dtype::F32, "{text}");
        assert_eq!(
            Weights::read_network(output.as_ref()).unwrap(),
            (NETWORK, good.clone()),
            "{prefix} {dtype:?}"
        );
        // A file that is there is left alone.
        let (code, _, error) = convert();
        assert!(code == 2 && error.contains("exists already and is left alone"), "{error}");
        fs::remove_file(output).unwrap();
    }
    // What does not fit is refused, and nothing is written.
    let refused = |change: &dyn Fn(&mut Vec<Entry>)| {
        let mut all = foreign("net.", Dtype::F64);
        change(&mut all);
        fs::write(input, tensors(&all)).unwrap();
        let (code, _, error) = convert();
        assert!(code != 0 && !Path::new(output).exists(), "{error}");
        error
    };
    let error = refused(&|all| all.push(("normalize.mean".into(), Dtype::F32, vec![3], vec![0; 12])));
    assert!(error.contains("normalize.mean: not a tensor of this network"), "{error}");
    let error = refused(&|all| all.retain(|(name, ..)| !name.contains("layer4")));
    assert!(error.contains("layer4.0.conv1.weight: missing from the weights"), "{error}");
    let error = refused(&|all| all[0].3[..8].copy_from_slice(&1e300f64.to_le_bytes()));
    assert!(error.contains("[0]: 1000000") && error.contains("is too large for F32"), "{error}");
    let error = refused(&|all| all[0].1 = Dtype::I64);
    assert!(error.contains("type I64, expected F32, F16, BF16 or F64"), "{error}");
    let error = refused(&|all| all.push(("linear.bias".into(), Dtype::F32, vec![10], vec![0; 40])));
    assert!(error.contains("linear.bias") && error.contains("is there already"), "{error}");
}

#[test]
fn weights_without_finite_logits_fail_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let file = path.to_str().unwrap();
    let written = |change: &dyn Fn(&mut Weights)| {
        let mut weights = GOOD.0.clone();
        change(&mut weights);
        weights.write(&path, Existing::Replace).unwrap();
        weights_command(&["check", file])
    };
    let fill = |name: &'static str, value: f32| {
        move |weights: &mut Weights| weights.tensors.get_mut(name).unwrap().values.fill(value)
    };
    let (code, text, error) = written(&|_| ());
    assert!(code == 0 && text.contains("all finite") && error.is_empty(), "{error}");
    // Products, sums and folded factors that overflow.
    for (name, value) in [
        ("conv1.weight", 3e38),
        ("linear.weight", 3e38),
        ("layer3.0.bn1.weight", 3e38),
        ("linear.bias", 3.4e38),
    ] {
        let change: &dyn Fn(&mut Weights) = &|weights: &mut Weights| {
            fill(name, value)(weights);
            match name {
                "linear.bias" => fill("linear.weight", 1e37)(weights),
                // One large factor leaves a width of 16 within f32.
                "layer3.0.bn1.weight" => fill("layer4.0.bn1.weight", 1e30)(weights),
                _ => (),
            }
        };
        let (code, text, error) = written(change);
        assert_eq!((code, text.as_str()), (1, ""), "{name}: {error}");
        assert!(
            error.contains("of 8 generated images have a logit that is NaN or infinite"),
            "{name}: {error}"
        );
    }
    let (code, _, error) = written(&fill("layer1.0.bn1.running_var", 0.0));
    assert!(
        code == 0 && error.contains("warning: layer1.0.bn1.running_var: 16 of 16 variances are 0"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200, failure_persistence: None, rng_seed: RngSeed::Fixed(SEED), ..ProptestConfig::default()
    })]

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), honest in any::<bool>()) {
        let mut bytes = bytes;
        if honest && bytes.len() >= 8 {
            // A header length that fits: the parser gets as far as the header.
            let len = (bytes.len() - 8) as u64;
            bytes[..8].copy_from_slice(&len.to_le_bytes());
        }
        prop_assert!(Weights::from_bytes(&bytes).is_err());
    }

    /// A flipped bit changes one value, or the file is refused; never a panic, never a silent change of names or shapes.
    #[test]
    fn a_flipped_bit_is_seen_or_changes_one_value(at in any::<prop::sample::Index>(), bit in 0..8u32, in_header in any::<bool>()) {
        let (good, mut bytes) = (&GOOD.0, GOOD.1.clone());
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let at = at.index(if in_header { header } else { bytes.len() });
        bytes[at] ^= 1 << bit;
        let Ok(actual) = Weights::from_bytes(&bytes) else { return Ok(()) };
        if actual.check(&NETWORK).is_ok() {
            let changed: usize = good
                .tensors
                .iter()
                .map(|(name, tensor)| {
                    let other = &actual.tensors[name].values;
                    tensor.values.iter().zip(other).filter(|(a, b)| a.to_bits() != b.to_bits()).count()
                })
                .sum();
            prop_assert!(changed <= 1, "{changed} values changed by one bit at {at}");
        }
    }

    #[test]
    fn a_truncated_file_is_refused(at in any::<prop::sample::Index>()) {
        let bytes = &GOOD.1;
        prop_assert!(Weights::from_bytes(&bytes[..at.index(bytes.len())]).is_err());
    }
}
