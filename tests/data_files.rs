//! CIFAR files: read as written, and every way a file can be wrong is an error that names it.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use secateur::data::cifar::{CIFAR10, CIFAR100, Layout};
use secateur::data::{DataSet, IMAGE_BYTES, SetKind};
use secateur::philox::{Key, Purpose};

const SEED: u64 = 41;

/// Record `index` of a file: labels that count up, pixels from Philox.
fn record(layout: &Layout, index: usize) -> Vec<u8> {
    let mut bytes = match layout.kind {
        SetKind::Cifar10 => vec![(index % 10) as u8],
        _ => vec![(index % 20) as u8, (index % 100) as u8],
    };
    let key = Key { seed: SEED, purpose: Purpose::Generation, epoch: 0, step: 0 };
    let words = (0..IMAGE_BYTES as u32 / 16).flat_map(|block| key.block(index as u32, block));
    bytes.extend(words.flat_map(u32::to_le_bytes));
    bytes
}

/// Records of a file that [`write_set`] fills; the others are zeros, which are valid.
const FILLED: usize = 32;

/// Writes a whole set into `folder`, as sparse files.
fn write_set(layout: &Layout, folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for (name, records) in layout.files() {
        let mut file = fs::File::create(folder.join(name)).unwrap();
        (0..FILLED).for_each(|index| file.write_all(&record(layout, index)).unwrap());
        file.set_len((records * layout.record()) as u64).unwrap();
    }
}

/// Replaces one byte of a file and returns the one that was there.
fn poke(path: &Path, at: usize, value: u8) -> u8 {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut old = [0];
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.read_exact(&mut old).unwrap();
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.write_all(&[value]).unwrap();
    old[0]
}

fn set_len(path: &Path, len: usize) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len as u64).unwrap();
}

fn open_error(kind: SetKind, folder: Option<&Path>) -> String {
    DataSet::open(kind, folder, None, None).unwrap_err().to_string()
}

#[test]
fn both_sets_are_read_as_written_from_either_folder() {
    println!("seed {SEED}");
    for (kind, layout) in [(SetKind::Cifar10, CIFAR10), (SetKind::Cifar100, CIFAR100)] {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join(layout.folder);
        write_set(&layout, &folder);
        let set = DataSet::open(kind, Some(parent.path()), None, None).unwrap();
        assert_eq!(set, DataSet::open(kind, Some(&folder), None, None).unwrap());
        assert_eq!((set.train.len(), set.test.len()), (50_000, 10_000));
        assert_eq!(set.class_names.len(), set.classes);
        let labels = layout.record() - IMAGE_BYTES;
        for index in 0..FILLED {
            let bytes = record(&layout, index);
            assert_eq!(set.test.image(index), &bytes[labels..], "test image {index}");
            assert_eq!(set.test.labels[index], u32::from(bytes[labels - 1]), "label {index}: the fine one");
            if kind == SetKind::Cifar10 {
                assert_eq!(set.train.image(30_000 + index), &bytes[labels..], "fourth file, image {index}");
            }
        }
        let limited = DataSet::open(kind, Some(&folder), Some(10_005), Some(7)).unwrap();
        assert_eq!((limited.train.len(), limited.test.len()), (10_005, 7));
        assert_eq!(limited.train.pixels, set.train.pixels[..10_005 * IMAGE_BYTES]);
        assert_eq!(limited.train.select(&[3, 10_000]).image(1), set.train.image(10_000));

        // The set is decided by the recipe; another set's files are named as such.
        let other = if kind == SetKind::Cifar10 { SetKind::Cifar100 } else { SetKind::Cifar10 };
        let error = open_error(other, Some(parent.path()));
        assert!(error.contains(&format!("holds {kind}, expected {other}")), "{error}");
    }
}

#[test]
fn missing_files_are_named() {
    let parent = tempfile::tempdir().unwrap();
    let error = open_error(SetKind::Cifar10, Some(parent.path()));
    for (name, _) in CIFAR10.files() {
        assert!(error.contains(name), "{error}");
    }
    assert!(error.contains("secateur data download"), "{error}");
    let error = open_error(SetKind::Cifar10, Some(&parent.path().join("nowhere")));
    assert!(error.ends_with("there is no such folder"), "{error}");
    let error = open_error(SetKind::Cifar10, None);
    assert!(error.starts_with("cifar10 needs its files: give --data DIR"), "{error}");
    let error = open_error(SetKind::Generated, Some(parent.path()));
    assert!(error.contains("data.set is \"generated\""), "{error}");

    write_set(&CIFAR10, parent.path());
    fs::remove_file(parent.path().join("data_batch_4.bin")).unwrap();
    let error = open_error(SetKind::Cifar10, Some(parent.path()));
    assert!(error.contains(": data_batch_4.bin missing, expected the binary version of cifar10"), "{error}");

    let python = tempfile::tempdir().unwrap();
    fs::create_dir(python.path().join("cifar-10-batches-py")).unwrap();
    let error = open_error(SetKind::Cifar10, Some(python.path()));
    assert!(error.contains("this is the Python version"), "{error}");
}

#[test]
fn damage_is_named_with_the_value_met_and_wanted() {
    let folder = tempfile::tempdir().unwrap();
    write_set(&CIFAR10, folder.path());
    let path = folder.path().join("data_batch_3.bin");
    let prefix = path.display().to_string();
    let error = || open_error(SetKind::Cifar10, Some(folder.path()));
    set_len(&path, 30_720_000);
    let wanted = "30720000 bytes, expected 30730000 (10000 records of 3073); the file is cut short";
    assert_eq!(error(), format!("{prefix}: {wanted}"));
    // Sizes are checked also of files that a limit leaves unread.
    assert!(DataSet::open(SetKind::Cifar10, Some(folder.path()), Some(1), None).is_err());
    set_len(&path, 0);
    assert!(error().contains(": 0 bytes, expected 30730000"));
    set_len(&path, 30_730_001);
    let wanted =
        "30730001 bytes, expected 30730000 (10000 records of 3073); there are bytes behind the last record";
    assert_eq!(error(), format!("{prefix}: {wanted}"));
    set_len(&path, 30_730_000);
    poke(&path, 3073 * 77, 10);
    let wanted = "record 77 has label 10, expected 0 to 9; the file is damaged or another set's";
    assert_eq!(error(), format!("{prefix}: {wanted}"));
    assert!(DataSet::open(SetKind::Cifar10, Some(folder.path()), Some(20_077), None).is_ok());

    let folder = tempfile::tempdir().unwrap();
    write_set(&CIFAR100, folder.path());
    let path = folder.path().join("test.bin");
    for (byte, value, what, last) in [(0, 20, "coarse label", 19), (1, 100, "fine label", 99)] {
        let at = 3074 * 9999 + byte;
        let good = poke(&path, at, value);
        let error = open_error(SetKind::Cifar100, Some(folder.path()));
        assert!(error.contains(&format!("record 9999 has {what} {value}, expected 0 to {last}")), "{error}");
        poke(&path, at, good);
    }
}

#[test]
fn random_damage_is_an_error_or_harmless() {
    let folder = tempfile::tempdir().unwrap();
    write_set(&CIFAR100, folder.path());
    let path = folder.path().join("test.bin");
    let len = 10_000 * CIFAR100.record();
    let config = ProptestConfig {
        cases: 40,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(SEED),
        ..ProptestConfig::default()
    };
    let strategy = (any::<prop::sample::Index>(), any::<u8>(), 0..3usize, 1..5000usize);
    proptest::test_runner::TestRunner::new(config)
        .run(&strategy, |(at, byte, how, amount)| {
            let at = at.index(len);
            let mut old = None;
            match how {
                0 => set_len(&path, at),
                1 => set_len(&path, len + amount),
                _ => old = Some(poke(&path, at, byte)),
            }
            let result = DataSet::open(SetKind::Cifar100, Some(folder.path()), Some(1), None);
            set_len(&path, len);
            if let Some(old) = old {
                poke(&path, at, old);
            }
            match result {
                // Only a changed pixel or a changed but valid label can pass: no digest guards unpacked files.
                Ok(set) => prop_assert!(how == 2 && set.test.len() == 10_000),
                Err(error) => prop_assert!(error.to_string().contains("test.bin"), "{}", error),
            }
            Ok(())
        })
        .unwrap();
}
