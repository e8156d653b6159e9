//! Weights files: what is written is read back, and a file that is not the weights of a network is refused.

use std::fs;
use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use secateur::files::Existing;
use secateur::model::{ResNet18, Weights, WeightsError, initialise};

const SEED: u64 = 5;
const NETWORK: ResNet18 = ResNet18 { width: 16, classes: 10 };
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
    for network in [NETWORK, ResNet18 { width: 16, classes: 100 }, ResNet18 { width: 64, classes: 10 }] {
        let path = folder.path().join(format!("{}-{}.safetensors", network.width, network.classes));
        let weights = initialise(network, SEED);
        weights.write(&path, Existing::Refuse).unwrap();
        let (met, read) = Weights::read_network(&path).unwrap();
        assert_eq!(met, network);
        assert_eq!(read, weights);
        assert_eq!(weights.to_bytes(), fs::read(&path).unwrap(), "the same weights give the same bytes");
        assert!(weights.write(&path, Existing::Refuse).is_err());
        weights.write(&path, Existing::Replace).unwrap();
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "no temporary file stays");
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
    let error = good.check(&ResNet18 { width: 64, classes: 10 }).unwrap_err().to_string();
    assert_eq!(error, "conv1.weight: shape [16, 3, 3, 3], expected [64, 3, 3, 3]");

    // Names as DataParallel saves them.
    let mut wrapped = Weights::default();
    for (name, tensor) in &good.tensors {
        wrapped.insert(format!("module.{name}"), &tensor.shape, tensor.values.clone());
    }
    let error = wrapped.infer_network().unwrap_err().to_string();
    assert!(error.starts_with("module.bn1.bias: the name has the prefix of a wrapper, module."), "{error}");
}

#[test]
fn networks_without_kernels_are_refused() {
    let mut weights = Weights::default();
    weights.insert("conv1.weight", &[32, 3, 3, 3], vec![0.0; 864]);
    let error = weights.infer_network().unwrap_err().to_string();
    assert_eq!(
        error,
        "conv1.weight has 32 output channels, expected 16 or 64 (the widths that have kernels)"
    );
    weights.insert("conv1.weight", &[], vec![0.0]);
    assert!(matches!(weights.infer_network(), Err(WeightsError::Width { met: 0 })));
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
    assert!(error.contains("a: type F16, expected F32; convert with tensor.float()"), "{error}");
    let error = Weights::read(&folder.path().join("none")).unwrap_err().to_string();
    assert!(error.contains("none: "), "{error}");
}

/// Runs `secateur weights` and gives exit code, stdout and stderr.
fn weights_command(args: &[&str]) -> (i32, String, String) {
    let mut command = assert_cmd::Command::cargo_bin("secateur").unwrap();
    let output = command.arg("weights").args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_command_writes_checks_and_never_overwrites() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let file = path.to_str().unwrap();
    let init = ["init", "--dataset", "cifar100", "--width", "16", "--seed", "5", "--out", file];
    assert_eq!(weights_command(&init).0, 0);
    let network = ResNet18 { width: 16, classes: 100 };
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
        let Ok(met) = Weights::from_bytes(&bytes) else { return Ok(()) };
        if met.check(&NETWORK).is_ok() {
            let changed: usize = good
                .tensors
                .iter()
                .map(|(name, tensor)| {
                    let other = &met.tensors[name].values;
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
