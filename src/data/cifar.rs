//! The binary version of CIFAR-10 and CIFAR-100, exactly as the official archives unpack.
//!
//! A record is one label byte (CIFAR-10) or a coarse and a fine label byte (CIFAR-100, the fine one is used), then
//! 3,072 bytes of planar RGB. Format: Krizhevsky, "Learning multiple layers of features from tiny images", 2009, and
//! the data set's web page.

use std::fs;
use std::path::Path;

use super::{DataError, IMAGE_BYTES, Images, SetKind, Sizes};
use crate::digest::sha256_of;
use crate::files::{Existing, Folder, if_there, limit, read_text};

/// How one of the two sets lies on disk.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub kind: SetKind,
    /// The folder that the archive unpacks to.
    pub folder: &'static str,
    pub train_files: &'static [&'static str],
    pub test_file: &'static str,
    /// Folder and files of the Python version, the test images last; as many files of as many records.
    pub python_folder: &'static str,
    pub python_files: &'static [&'static str],
    /// The official archives of both versions.
    pub archives: [&'static str; 2],
    /// Records of each file.
    pub train_records: usize,
    pub test_records: usize,
    /// Classes of each label byte, and what it is called; the last one is the label.
    pub labels: &'static [(&'static str, usize)],
    pub class_names: &'static str,
}

pub const CIFAR10: Layout = Layout {
    kind: SetKind::Cifar10,
    folder: "cifar-10-batches-bin",
    train_files: &[
        "data_batch_1.bin",
        "data_batch_2.bin",
        "data_batch_3.bin",
        "data_batch_4.bin",
        "data_batch_5.bin",
    ],
    test_file: "test_batch.bin",
    python_folder: "cifar-10-batches-py",
    python_files: &[
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
    ],
    archives: ["cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"],
    train_records: 10_000,
    test_records: 10_000,
    labels: &[("label", 10)],
    class_names: "airplane automobile bird cat deer dog frog horse ship truck",
};

pub const CIFAR100: Layout = Layout {
    kind: SetKind::Cifar100,
    folder: "cifar-100-binary",
    train_files: &["train.bin"],
    test_file: "test.bin",
    python_folder: "cifar-100-python",
    python_files: &["train", "test"],
    archives: ["cifar-100-binary.tar.gz", "cifar-100-python.tar.gz"],
    train_records: 50_000,
    test_records: 10_000,
    labels: &[("coarse label", 20), ("fine label", 100)],
    class_names: "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly \
        camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup \
        dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard \
        lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter \
        palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket \
        rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper \
        table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf \
        woman worm",
};

impl Layout {
    /// The other set.
    pub fn other(&self) -> Self {
        if self.kind == SetKind::Cifar10 { CIFAR100 } else { CIFAR10 }
    }

    pub fn class_names(&self) -> Vec<String> {
        self.class_names.split_whitespace().map(String::from).collect()
    }

    pub fn sizes(&self) -> Sizes {
        Sizes { train: self.train_records * self.train_files.len(), test: self.test_records }
    }

    /// Bytes of a record.
    pub fn record(&self) -> usize {
        self.labels.len() + IMAGE_BYTES
    }

    /// Every file with its number of records.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, usize)> + '_ {
        let train = self.train_files.iter().map(|&name| (name, self.train_records));
        train.chain([(self.test_file, self.test_records)])
    }
}

/// Digests of the files of a verified archive, next to them: `sha256sum --check` reads it too.
pub const SUMS: &str = "SHA256SUMS";

/// Writes [`SUMS`] for the files in `place`, which come from an archive whose digest is right.
pub fn record_sums(layout: &Layout, place: &Folder) -> Result<(), DataError> {
    let mut text = String::new();
    for (name, _) in layout.files() {
        text += &format!("{}  {name}\n", file_sha256(&place.path().join(name))?);
    }
    let written = place.write(SUMS, text.as_bytes(), Existing::Replace);
    written.map_err(|source| DataError::Io { path: place.path().join(SUMS), source })
}

/// Whether the files in `place` are those of the verified archive that they were unpacked from; false where no digests are
/// recorded, so that nothing is known but their sizes.
///
/// # Errors
/// A file with another digest than the recorded one.
pub fn verify(layout: &Layout, place: &Path) -> Result<bool, DataError> {
    let path = place.join(SUMS);
    let text = if_there(read_text(&path, limit::SETTINGS));
    let text = text.map_err(|source| DataError::Io { path: path.clone(), source })?;
    let Some(text) = text else { return Ok(false) };
    let sums: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once("  ")).collect();
    for (name, _) in layout.files() {
        let Some((expected, _)) = sums.iter().find(|(_, file)| *file == name) else {
            return Err(DataError::Sums { path, name: name.into() });
        };
        let path = place.join(name);
        let actual = file_sha256(&path)?;
        if actual != *expected {
            return Err(DataError::Digest { path, actual, expected: (*expected).into() });
        }
    }
    Ok(true)
}

fn file_sha256(path: &Path) -> Result<String, DataError> {
    fs::File::open(path).and_then(sha256_of).map_err(|source| DataError::Io { path: path.into(), source })
}

pub(super) fn check_size(layout: &Layout, path: &Path, actual: u64, records: usize) -> Result<(), DataError> {
    let record = layout.record();
    let expected = (records * record) as u64;
    if actual == expected {
        return Ok(());
    }
    let diagnosis =
        if actual < expected { "the file is cut short" } else { "there are bytes after the last record" };
    Err(DataError::Size { path: path.into(), actual, expected, records, record, diagnosis })
}

/// Appends the records in `bytes`, whole ones; `path` stands in messages.
pub fn append(layout: &Layout, path: &Path, bytes: &[u8], images: &mut Images) -> Result<(), DataError> {
    let count = bytes.len() / layout.record();
    images.pixels.reserve(count * IMAGE_BYTES);
    images.labels.reserve(count);
    for (record, bytes) in bytes.chunks_exact(layout.record()).enumerate() {
        let (labels, pixels) = bytes.split_at(layout.labels.len());
        for (&actual, &(what, classes)) in labels.iter().zip(layout.labels) {
            if usize::from(actual) >= classes {
                let (path, actual) = (path.into(), actual.into());
                return Err(DataError::Label { path, record, what, actual, classes });
            }
        }
        images.labels.extend(labels.last().map(|&label| u32::from(label)));
        images.pixels.extend_from_slice(pixels);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layouts_are_those_of_the_archives() {
        assert_eq!(CIFAR10.record(), 3073);
        assert_eq!(CIFAR100.record(), 3074);
        assert_eq!(CIFAR10.sizes(), Sizes { train: 50_000, test: 10_000 });
        assert_eq!(CIFAR100.sizes(), Sizes { train: 50_000, test: 10_000 });
        assert_eq!(CIFAR10.class_names().len(), 10);
        let names = CIFAR100.class_names();
        assert_eq!(names.len(), 100);
        assert!(names.is_sorted(), "the fine labels are numbered in alphabetical order");
    }
}
