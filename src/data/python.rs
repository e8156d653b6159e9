//! The Python version of CIFAR-10 and CIFAR-100: each file a pickled dict, as the official archives and torchvision have it.
//!
//! `data` is an array of N x 3,072 bytes, planar RGB as in the binary version; the labels are lists of N numbers, `labels`, or
//! `coarse_labels` and `fine_labels` (which is used).

use std::path::Path;

use super::cifar::Layout;
use super::pickle::{Pickle, Value};
use super::{DataError, IMAGE_BYTES, Images, SetKind};

/// The lists of labels in a file, in the order of [`Layout::labels`]; the last one is the label.
fn label_keys(layout: &Layout) -> &'static [&'static str] {
    match layout.kind {
        SetKind::Cifar100 => &["coarse_labels", "fine_labels"],
        _ => &["labels"],
    }
}

/// Appends the first `count` of the `records` images that a file holds; `path` stands in messages.
pub fn append(
    layout: &Layout,
    path: &Path,
    bytes: &[u8],
    records: usize,
    count: usize,
    images: &mut Images,
) -> Result<(), DataError> {
    let wrong = |reason: String| DataError::Pickle { path: path.into(), set: layout.kind, reason };
    let pickle = Pickle::parse(bytes).map_err(wrong)?;
    let entry = |key: &str| {
        pickle.entry(pickle.root(), key).ok_or_else(|| wrong(format!("no '{key}', expected a dict with it")))
    };
    let array = pickle.byte_array(entry("data")?);
    let array = array.ok_or_else(|| wrong("'data' is no NumPy array of bytes in C order".into()))?;
    let expected = [records as i64, IMAGE_BYTES as i64];
    if array.shape != expected || array.data.len() != records * IMAGE_BYTES {
        let (shape, len) = (array.shape, array.data.len());
        return Err(wrong(format!(
            "'data' has shape {shape:?} and {len} bytes, expected shape {expected:?}"
        )));
    }
    let mut labels = Vec::new();
    for (key, &(what, classes)) in label_keys(layout).iter().zip(layout.labels) {
        let items = pickle.items(entry(key)?).ok_or_else(|| wrong(format!("'{key}' is no list")))?;
        if items.len() != records {
            return Err(wrong(format!("{} numbers in '{key}', expected {records}", items.len())));
        }
        labels.clear();
        for (record, item) in items.enumerate().take(count) {
            match item {
                Value::Int(label) if (0..classes as i64).contains(label) => labels.push(*label as u32),
                Value::Int(label) => {
                    let path = path.into();
                    return Err(DataError::Label { path, record, what, actual: *label, classes });
                }
                _ => return Err(wrong(format!("item {record} of '{key}' is no number"))),
            }
        }
    }
    images.labels.extend(labels);
    images.pixels.extend_from_slice(&array.data[..count * IMAGE_BYTES]);
    Ok(())
}
