//! Weights of other programs: what a file that is not safetensors is instead, and state dicts under other names and types made
//! into those of this network.

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};

use super::layers::WIDTHS;
use super::{ResNet, Weights, WeightsError};

/// Buffers that PyTorch's BatchNorm saves and nothing here uses.
pub(super) const IGNORED_SUFFIX: &str = ".num_batches_tracked";
/// Names of a layer in other implementations, and here.
const RENAMED: [(&str, &str); 2] = [("fc.", "linear."), ("downsample.", "shortcut.")];
/// The tensor whose name shows the prefix of all.
const FIRST: &str = "conv1.weight";
/// Names that a message lists before it counts the rest.
const LISTED: usize = 3;

/// Weights under the names of this network, and what was changed to have them.
#[derive(Clone, Debug)]
pub struct Converted {
    pub network: ResNet,
    pub weights: Weights,
    /// One line a change.
    pub changes: Vec<String>,
}

/// What a file that is no safetensors file is, by its first bytes, and what to do; `None` where nothing tells.
pub fn recognise(bytes: &[u8]) -> Option<&'static str> {
    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(256)]).trim_start().to_ascii_lowercase();
    let starts = |texts: &[&str]| texts.iter().any(|text| start.starts_with(text));
    Some(match bytes {
        [b'P', b'K', 3, 4, ..] | [0x80, 2..=5, ..] => {
            "a PyTorch file (.pth, .pt) or another pickle; load it with torch.load(FILE, weights_only=True) and write its state_dict \
             with safetensors.torch.save_file"
        }
        [0x1f, 0x8b, ..] => "a gzip archive; unpack it first",
        [0x89, b'H', b'D', b'F', ..] => "an HDF5 file, as Keras writes",
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => "a NumPy array",
        _ if starts(&["version https://git-lfs"]) => {
            "a Git LFS pointer and not the file that it stands for; fetch that with `git lfs pull`"
        }
        _ if starts(&["<!doctype", "<html", "<?xml"]) => {
            "a web page and not a file of weights; download from the direct link of the file"
        }
        _ => return None,
    })
}

/// Parses the bytes of a safetensors file of any floating-point type and makes its names those of this network: a prefix that all
/// share goes, as do batch counters; `fc` is `linear`, `downsample` is `shortcut`. What then is not exactly one network is refused.
pub fn convert(bytes: &[u8]) -> Result<Converted, WeightsError> {
    let file = super::weights::parse(bytes)?;
    let tensors = super::weights::by_name(&file);
    let names: Vec<&str> = tensors.iter().map(|(name, _)| *name).collect();
    let prefix = prefix(&names);
    let (mut weights, mut counts) = (Weights::default(), [0; 3]);
    let mut types: Vec<Dtype> = Vec::new();
    for (name, view) in &tensors {
        if name.ends_with(IGNORED_SUFFIX) {
            counts[0] += 1;
            continue;
        }
        let inner = name.strip_prefix(prefix).unwrap_or(name);
        let renamed = rename(inner);
        counts[1] += usize::from(inner != *name);
        counts[2] += usize::from(renamed != inner);
        if view.dtype() != Dtype::F32 && !types.contains(&view.dtype()) {
            types.push(view.dtype());
        }
        if weights.tensors.contains_key(&renamed) {
            return Err(WeightsError::Twice { name: renamed, other: (*name).into() });
        }
        weights.insert(renamed, view.shape(), values(name, view)?);
    }
    let network = weights.infer_network()?;
    weights.check(&network)?;
    let mut changes = Vec::new();
    let mut change = |count: usize, what: String| {
        if count > 0 {
            changes.push(format!("{what}: {count} tensors"));
        }
    };
    change(counts[1], format!("prefix {prefix} stripped"));
    change(counts[2], "fc to linear, downsample to shortcut".into());
    change(counts[0], "num_batches_tracked dropped".into());
    for of in types {
        changes.push(format!("{of:?} to F32"));
    }
    Ok(Converted { network, weights, changes })
}

/// How a file with these names, which are not those of this network, is made into weights of this network, or what it holds instead.
pub(super) fn instead(names: &[&str]) -> String {
    let known = ResNet::resnet34(WIDTHS[0], 10).parameters();
    let names: Vec<&str> =
        names.iter().copied().filter(|name| known.iter().all(|parameter| parameter.name != *name)).collect();
    let names = &names[..];
    let prefix = prefix(names);
    let renamed = names.iter().filter(|name| {
        let inner = name.strip_prefix(prefix).unwrap_or(name);
        rename(inner) != inner
    });
    let mut mapping = Vec::new();
    if !prefix.is_empty() {
        mapping.push(format!("{prefix}* is *"));
    }
    for (theirs, ours) in RENAMED {
        if renamed.clone().any(|name| name.contains(theirs)) {
            mapping.push(format!("{theirs}* is {ours}*"));
        }
    }
    if mapping.is_empty() {
        return format!("found instead: {}", listed(names));
    }
    format!(
        "found instead: {} ({}); `secateur weights convert FILE OUT` renames them",
        listed(names),
        mapping.join(", ")
    )
}

/// The first few names, and how many more there are.
fn listed(names: &[&str]) -> String {
    match names.len().checked_sub(LISTED) {
        _ if names.is_empty() => "nothing that could be it".into(),
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..LISTED].join(", ")),
    }
}

/// What stands before `conv1.weight` in the outermost tensor that ends so: "", or a text that ends with a dot.
fn prefix<'a>(names: &[&'a str]) -> &'a str {
    let before = names.iter().filter_map(|name| name.strip_suffix(FIRST));
    let whole = before.filter(|prefix| prefix.is_empty() || prefix.ends_with('.'));
    // Those of a block's own conv1 are longer, and the same prefix stands before them.
    let is_stage = |part: &str| part.strip_prefix("layer").is_some_and(|number| number.parse::<u8>().is_ok());
    whole.min_by_key(|prefix| prefix.len()).filter(|prefix| !prefix.split('.').any(is_stage)).unwrap_or("")
}

fn rename(name: &str) -> String {
    let mut renamed = name.to_string();
    for (theirs, ours) in RENAMED {
        let whole = |at: usize| at == 0 || renamed.as_bytes()[at - 1] == b'.';
        if let Some(at) = renamed.find(theirs).filter(|at| whole(*at)) {
            renamed.replace_range(at..at + theirs.len(), ours);
        }
    }
    renamed
}

/// The values as f32, of any floating-point type; a value that is finite there and not here is refused.
fn values(name: &str, view: &TensorView) -> Result<Vec<f32>, WeightsError> {
    let data = view.data();
    // Not casts: nothing promises that the file's data is aligned.
    let values: Vec<f64> = match view.dtype() {
        Dtype::F32 => data.as_chunks().0.iter().map(|&word| f32::from_le_bytes(word).into()).collect(),
        Dtype::F16 => data.as_chunks().0.iter().map(|&word| f16::from_le_bytes(word).into()).collect(),
        Dtype::BF16 => data.as_chunks().0.iter().map(|&word| bf16::from_le_bytes(word).into()).collect(),
        Dtype::F64 => data.as_chunks().0.iter().map(|&word| f64::from_le_bytes(word)).collect(),
        other => {
            return Err(WeightsError::Type {
                name: name.into(),
                actual: format!("{other:?}"),
                expected: "F32, F16, BF16 or F64",
            });
        }
    };
    match values.iter().position(|value| value.is_finite() && !(*value as f32).is_finite()) {
        Some(index) => Err(WeightsError::Range { name: name.into(), index, value: values[index] }),
        None => Ok(values.into_iter().map(|value| value as f32).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_this_network() {
        for (theirs, ours) in [
            ("fc.weight", "linear.weight"),
            ("layer2.0.downsample.1.bias", "layer2.0.shortcut.1.bias"),
            ("linear.bias", "linear.bias"),
            ("sfc.bias", "sfc.bias"),
        ] {
            assert_eq!(rename(theirs), ours);
        }
        assert_eq!(
            prefix(&["model.module.layer1.0.conv1.weight", "model.module.conv1.weight"]),
            "model.module."
        );
        assert_eq!(prefix(&["layer1.0.conv1.weight", "net.layer1.0.conv1.weight"]), "");
        assert_eq!(prefix(&["layers.conv1.weight"]), "layers.");
        assert_eq!(prefix(&["net.0.weight"]), "");
        let said = instead(&["net.conv1.weight", "net.fc.weight", "net.fc.bias", "net.bn1.bias"]);
        let expected = "found instead: net.conv1.weight, net.fc.weight, net.fc.bias and 1 more (net.* is *, fc.* is linear.*); \
                      `secateur weights convert FILE OUT` renames them";
        assert_eq!(said, expected);
        assert_eq!(instead(&["a"]), "found instead: a");
    }

    #[test]
    fn files_of_other_kinds_are_recognised() {
        for (bytes, part) in [
            (&b"PK\x03\x04...."[..], "PyTorch"),
            (b"\x80\x02}q\x00", "pickle"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "LFS pointer"),
            (b"\n <!DOCTYPE html><html>", "web page"),
            (b"\x1f\x8b\x08", "gzip"),
        ] {
            assert!(recognise(bytes).unwrap().contains(part), "{part}");
        }
        assert_eq!(recognise(b"\x08\0\0\0\0\0\0\0{}"), None);
        assert_eq!(recognise(b""), None);
    }
}
