//! CIFAR files: read as written, and every way a file can be wrong is an error that names it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use secateur::data::cifar::{self, CIFAR10, CIFAR100, Layout};
use secateur::data::{DataSet, IMAGE_BYTES, Images, SetKind, python};
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
    assert!(error.contains("the images are the generated ones, which are in no files"), "{error}");

    write_set(&CIFAR10, parent.path());
    fs::remove_file(parent.path().join("data_batch_4.bin")).unwrap();
    let error = open_error(SetKind::Cifar10, Some(parent.path()));
    assert!(error.contains(": data_batch_4.bin missing, expected the binary version of cifar10"), "{error}");

    let python = tempfile::tempdir().unwrap();
    let folder = python.path().join("cifar-10-batches-py");
    fs::create_dir(&folder).unwrap();
    for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_5", "test_batch"] {
        fs::write(folder.join(name), "").unwrap();
    }
    let error = open_error(SetKind::Cifar10, Some(python.path()));
    assert!(
        error.contains("-py: data_batch_4 missing, expected the Python version of cifar10 (data_batch_1, "),
        "{error}"
    );

    // One file of a set, and what is none.
    for (name, what) in [
        ("data_batch_1.bin", "one file of the binary version of cifar10"),
        ("test_batch", "one file of the Python version of cifar10"),
        ("train", "one file of the Python version of cifar100"),
        ("thesis.pdf", "neither a folder nor a gzip archive"),
    ] {
        let path = python.path().join(name);
        fs::write(&path, "something").unwrap();
        let error = open_error(SetKind::Cifar10, Some(&path));
        assert!(
            error.contains(&format!("{name}: {what}; --data takes the folder that holds all files")),
            "{error}"
        );
    }
}

#[test]
fn damage_is_named_with_the_value_met_and_wanted() {
    let folder = tempfile::tempdir().unwrap();
    write_set(&CIFAR10, folder.path());
    let path = folder.path().join("data_batch_3.bin");
    let prefix = path.display().to_string();
    let error = || open_error(SetKind::Cifar10, Some(folder.path()));
    set_len(&path, 30_720_000);
    let expected = "30720000 bytes, expected 30730000 (10000 records of 3073); the file is cut short";
    assert_eq!(error(), format!("{prefix}: {expected}"));
    // Sizes are checked also of files that a limit leaves unread.
    assert!(DataSet::open(SetKind::Cifar10, Some(folder.path()), Some(1), None).is_err());
    set_len(&path, 0);
    assert!(error().contains(": 0 bytes, expected 30730000"));
    set_len(&path, 30_730_001);
    let expected =
        "30730001 bytes, expected 30730000 (10000 records of 3073); there are bytes after the last record";
    assert_eq!(error(), format!("{prefix}: {expected}"));
    set_len(&path, 30_730_000);
    poke(&path, 3073 * 77, 10);
    let expected = "record 77 has label 10, expected 0 to 9; the file is damaged or another set's";
    assert_eq!(error(), format!("{prefix}: {expected}"));
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

/// The files of the fixture, by name; scripts/make-pickle-fixture.py makes it.
fn fixture() -> BTreeMap<String, Vec<u8>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/cifar-pickles.tar.gz");
    let mut archive = tar::Archive::new(GzDecoder::new(fs::File::open(path).unwrap()));
    let files = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().to_str().unwrap().to_string(), bytes)
    });
    files.collect()
}

#[test]
fn what_python_wrote_is_read_as_the_binary_files_are() {
    let files = fixture();
    let here = Path::new("here");
    for (name, layout) in [("cifar10.", CIFAR10), ("cifar100.", CIFAR100)] {
        let mut binary = Images::default();
        cifar::append(&layout, here, &files[&format!("{name}bin")], &mut binary).unwrap();
        assert_eq!(binary.len(), 5);
        let (mut read, mut refused) = (0, 0);
        for (file, bytes) in
            files.iter().filter(|(file, _)| file.starts_with(name) && file.ends_with(".pickle"))
        {
            let mut images = Images::default();
            let result = python::append(&layout, here, bytes, 5, 5, &mut images);
            if file.contains("refused") {
                let error = result.unwrap_err().to_string();
                assert!(error.contains("'data' is no NumPy array of bytes in C order"), "{file}: {error}");
                refused += 1;
                continue;
            }
            result.unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(images == binary, "{file}");
            read += 1;
            // The first three, after those that are there.
            python::append(&layout, here, bytes, 5, 3, &mut images).unwrap();
            assert_eq!((images.len(), images.image(7)), (8, binary.image(2)));
            let error = python::append(&layout, here, bytes, 6, 1, &mut images).unwrap_err().to_string();
            assert!(
                error.contains("'data' has shape [5, 3072]") && error.contains("expected shape [6, 3072]"),
                "{error}"
            );
        }
        assert_eq!((read, refused), (9, 2), "{name}");
        // A label that is no class, and the other set's file.
        let mut bytes = files[&format!("{name}python2.pickle")].clone();
        let at = bytes
            .windows(3)
            .position(|at| at == [b'(', b'K', if layout.kind == SetKind::Cifar10 { 3 } else { 4 }]);
        bytes[at.unwrap() + 2] = 200;
        let error =
            python::append(&layout, here, &bytes, 5, 5, &mut Images::default()).unwrap_err().to_string();
        assert!(
            error.contains("here: record 0 has") && error.contains("label 200, expected 0 to"),
            "{error}"
        );
        let other = if layout.kind == SetKind::Cifar10 { CIFAR100 } else { CIFAR10 };
        let error =
            python::append(&other, here, &files[&format!("{name}p4.pickle")], 5, 5, &mut Images::default());
        assert!(error.unwrap_err().to_string().contains("expected a dict with it"));
    }
}

/// A file of the Python version with `records` images: those of [`record`] first, then black ones of class 0.
fn pickled(layout: &Layout, records: usize) -> Vec<u8> {
    let head = b"\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87R(K\x01J";
    let dtype =
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T";
    let mut bytes = head.to_vec();
    bytes.extend((records as u32).to_le_bytes());
    bytes.extend(b"M\x00\x0c\x86");
    bytes.extend(dtype);
    bytes.extend(((records * IMAGE_BYTES) as u32).to_le_bytes());
    let labels = layout.labels.len();
    (0..FILLED).for_each(|index| bytes.extend(&record(layout, index)[labels..]));
    bytes.resize(bytes.len() + (records - FILLED) * IMAGE_BYTES, 0);
    bytes.extend(b"tb");
    let names: &[&[u8]] = if labels == 1 { &[b"labels"] } else { &[b"coarse_labels", b"fine_labels"] };
    for (column, name) in names.iter().enumerate() {
        bytes.extend([b'U', name.len() as u8]);
        bytes.extend(*name);
        bytes.extend(b"](");
        let label = |index: usize| if index < FILLED { record(layout, index)[column] } else { 0 };
        bytes.extend((0..records).flat_map(|index| [b'K', label(index)]));
        bytes.push(b'e');
    }
    bytes.extend(b"u.");
    bytes
}

/// A gzipped archive of a folder.
fn pack(folder: &Path, path: &Path) {
    let file = fs::File::create(path).unwrap();
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::fast()));
    archive.sparse(false);
    archive.append_dir_all(folder.file_name().unwrap(), folder).unwrap();
    archive.into_inner().unwrap().finish().unwrap();
}

#[test]
fn every_layout_of_a_set_is_the_same_set() {
    for (kind, layout) in [(SetKind::Cifar10, CIFAR10), (SetKind::Cifar100, CIFAR100)] {
        let parent = tempfile::tempdir().unwrap();
        let binary = parent.path().join("binary").join(layout.folder);
        write_set(&layout, &binary);
        let python = parent.path().join("python").join(layout.python_folder);
        fs::create_dir_all(&python).unwrap();
        for (name, (_, records)) in layout.python_files.iter().zip(layout.files()) {
            fs::write(python.join(name), pickled(&layout, records)).unwrap();
        }
        let expected = DataSet::open(kind, Some(&binary), None, None).unwrap();
        let same = |path: &Path| {
            let actual =
                DataSet::open(kind, Some(path), None, None).unwrap_or_else(|error| panic!("{error}"));
            // Not assert_eq: it would print 180 MB.
            assert!(actual == expected, "{}", path.display());
        };
        same(&python);
        same(python.parent().unwrap());
        let limited = DataSet::open(kind, Some(&python), Some(10_005), Some(7)).unwrap();
        assert!(limited == DataSet::open(kind, Some(&binary), Some(10_005), Some(7)).unwrap());
        for (folder, name) in [(&binary, layout.archives[0]), (&python, layout.archives[1])] {
            // The archive itself, and the folder around it.
            let around = parent.path().join(format!("around-{name}"));
            fs::create_dir(&around).unwrap();
            pack(folder, &around.join(name));
            same(&around.join(name));
            let limited = DataSet::open(kind, Some(&around), Some(3), Some(2)).unwrap();
            assert_eq!((limited.train.len(), limited.test.image(1)), (3, expected.test.image(1)));
            // As the other set, and without its last file.
            let other = if kind == SetKind::Cifar10 { SetKind::Cifar100 } else { SetKind::Cifar10 };
            let error = open_error(other, Some(&around.join(name)));
            assert!(error.contains(&format!("holds {kind}, expected {other}")), "{error}");
        }
        let last = layout.python_files.last().unwrap();
        fs::remove_file(python.join(last)).unwrap();
        let cut = parent.path().join("cut.tar.gz");
        pack(&python, &cut);
        let error = open_error(kind, Some(&cut));
        assert!(
            error.contains(&format!("cut.tar.gz: {last} missing, expected the Python version of {kind}")),
            "{error}"
        );
        let whole = fs::read(&cut).unwrap();
        fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
        assert!(open_error(kind, Some(&cut)).contains("cut.tar.gz: "));
    }
}
