//! Extra images in `.npz` files and corrupted ones in `.npy` files: read as written, and every way that a file can be wrong is an
//! error that names it.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use secateur::data::corruptions::{self, SEVERITIES};
use secateur::data::extra::{ExtraImages, arrays};
use secateur::data::{DataError, IMAGE_BYTES, Images};
use secateur::recipe::Recipe;

use crate::common::npz::{archive, array, images, labels, write};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn pixels(extra: &ExtraImages) -> Result<Vec<u8>, DataError> {
    Ok(extra.chunks()?.collect::<Result<Vec<_>, _>>()?.concat())
}

#[test]
fn files_of_numpy_are_read() {
    // scripts/make-npz-fixture.py
    let mut expected = Vec::new();
    for image in 0..4 {
        for channel in 0..3 {
            for at in 0..1024 {
                expected.push((37 * image + 5 * (at / 32) + 3 * (at % 32) + 101 * channel) as u8);
            }
        }
    }
    for name in ["extra-stored.npz", "extra-deflated.npz"] {
        let extra = ExtraImages::open(&fixture(name), 10).unwrap();
        assert_eq!(extra.labels, [3, 1, 4, 1], "{name}");
        assert!(pixels(&extra).unwrap() == expected, "{name}: other pixels");
        let error = ExtraImages::open(&fixture(name), 4).unwrap_err().to_string();
        assert!(error.contains("label.npy: record 2 has label 4, expected 0 to 3"), "{error}");
    }
}

#[test]
fn what_is_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npz");
    // More than are read at a time.
    let mut images = images(4100);
    write(&path, &images);
    let extra = ExtraImages::open(&path, 10).unwrap();
    assert_eq!(extra.labels, images.labels);
    assert_eq!(
        extra.chunks().unwrap().map(|chunk| chunk.unwrap().len()).collect::<Vec<_>>(),
        [4096, 4].map(|n| n * IMAGE_BYTES)
    );
    assert!(pixels(&extra).unwrap() == images.pixels);
    // A set is known by its images and by its labels.
    let before = extra.sha256();
    images.pixels[5000] ^= 1;
    write(&path, &images);
    let changed = ExtraImages::open(&path, 10).unwrap().sha256();
    images.pixels[5000] ^= 1;
    images.labels[7] = (images.labels[7] + 1) % 10;
    write(&path, &images);
    let relabelled = ExtraImages::open(&path, 10).unwrap().sha256();
    assert!(before != changed && before != relabelled);
    let text = format!(
        "epochs = 1\nbatch = 50\ndata.set = 'generated'\ndata.extra = ['{0}', '{0}2']\noptimizer.learning_rate = 1\nschedule.kind = 'constant'",
        path.display()
    );
    fs::copy(&path, folder.path().join("x.npz2")).unwrap();
    let recipe = Recipe::parse("test", &text, &[]).unwrap();
    assert_eq!(recipe.data.extra_share, 0.7);
    let data = recipe.data.open(None).unwrap();
    assert_eq!((data.train.len(), data.extra_count()), (2000, 8200));
    assert_eq!(recipe.split(&data).unwrap().extra, 2000..10_200);
}

/// A file of two images with these members.
fn refused(folder: &Path, bytes: &[u8]) -> String {
    let path = folder.join("x.npz");
    fs::write(&path, bytes).unwrap();
    let opened = ExtraImages::open(&path, 10).and_then(|extra| pixels(&extra).map(|_| extra));
    let error = opened.unwrap_err().to_string();
    assert!(error.starts_with(path.to_str().unwrap()), "{error}");
    error
}

#[test]
fn every_fault_is_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let two = images(2);
    let image = array("|u1", &[2, 32, 32, 3], &two.pixels);
    let label = labels(&[0, 9]);
    let whole = archive(&[("image.npy", &image), ("label.npy", &label)], false);
    fs::write(folder.path().join("whole.npz"), &whole).unwrap();
    ExtraImages::open(&folder.path().join("whole.npz"), 10).unwrap();

    let with = |image: &[u8], label: &[u8]| {
        [false, true].map(|deflate| archive(&[("image.npy", image), ("label.npy", label)], deflate))
    };
    let shaped = |dtype: &str, shape: &[usize]| array(dtype, shape, &two.pixels);
    let replaced = |bytes: &[u8], from: &str, to: &str| {
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
    };
    let cases: Vec<(Vec<u8>, Vec<u8>, &str)> = vec![
        (shaped("<f4", &[2, 32, 32, 3]), label.clone(), "image.npy: dtype <f4, expected |u1 (uint8)"),
        (
            shaped("|u1", &[2, 3, 32, 32]),
            label.clone(),
            "image.npy: shape (2, 3, 32, 32), expected (N, 32, 32, 3)",
        ),
        (shaped("|u1", &[6144]), label.clone(), "image.npy: shape (6144), expected (N, 32, 32, 3)"),
        (
            shaped("|u1", &[3, 32, 32, 3]),
            label.clone(),
            "image.npy: 6272 bytes, expected 9344 (a header of 128 and 3 times 3072)",
        ),
        (shaped("|u1", &[0, 32, 32, 3]), label.clone(), "image.npy: 0 rows, expected 1 to 100000000"),
        (shaped("|u1", &[usize::MAX, 32, 32, 3]), label.clone(), "rows, expected 1 to 100000000"),
        (replaced(&image, "(2,", "(-2,"), label.clone(), "image.npy: no header of a NumPy array"),
        (
            replaced(&image, "False", "True "),
            label.clone(),
            "image.npy: fortran_order True, expected False (C order)",
        ),
        (replaced(&image, "NUMPY", "NUMPI"), label.clone(), "image.npy: no header of a NumPy array"),
        (
            replaced(&image, "'|u1'", "[('a', '|u1')]"),
            label.clone(),
            "image.npy: no header of a NumPy array of one type",
        ),
        (image.clone(), labels(&[0, 10]), "label.npy: record 1 has label 10, expected 0 to 9"),
        (image.clone(), labels(&[-1, 0]), "label.npy: record 0 has label -1, expected 0 to 9"),
        (image.clone(), labels(&[0, 1, 2]), "label.npy: 3 labels, expected 2, one an image"),
        (
            image.clone(),
            array("<f8", &[2], &[0; 16]),
            "label.npy: dtype <f8, expected an integer, little-endian",
        ),
        (
            image.clone(),
            array(">i8", &[2], &[0; 16]),
            "label.npy: dtype >i8, expected an integer, little-endian",
        ),
        (image.clone(), array("<i8", &[2, 1], &[0; 16]), "label.npy: shape (2, 1), expected (N)"),
        (image.clone(), Vec::new(), "label.npy: no header of a NumPy array"),
    ];
    for (image, label, expected) in &cases {
        for bytes in with(image, label) {
            let error = refused(folder.path(), &bytes);
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    let error = refused(folder.path(), &archive(&[("image.npy", &image)], false));
    assert!(error.contains("holds no label.npy; label its images with `secateur data label "), "{error}");
    let (unlabelled, none) = arrays(&folder.path().join("x.npz")).unwrap();
    assert_eq!((unlabelled.images().unwrap(), none), (2, None));
    let error = refused(folder.path(), &archive(&[("labels.npy", &label)], false));
    assert!(
        error.contains("holds no image.npy, expected an .npz file with the arrays image and label"),
        "{error}"
    );
    for part in 0..whole.len() {
        let error = refused(folder.path(), &whole[..part]);
        assert!(error.contains("cut short"), "{part} bytes of {}: {error}", whole.len());
    }
    // Pixels and labels that are others than the archive says.
    for at in [1000, 6478] {
        let mut changed = whole.clone();
        changed[at] ^= 2;
        let error = refused(folder.path(), &changed);
        assert!(error.contains(".npy: Invalid checksum: expected "), "byte {at}: {error}");
    }
    // What the directory says: offsets from its start.
    let directory = whole.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    let deflated = archive(&[("image.npy", &image), ("label.npy", &label)], true);
    let of_deflated = deflated.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    let changed = |bytes: &[u8], at: usize, value: u32| {
        let mut bytes = bytes.to_vec();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        refused(folder.path(), &bytes)
    };
    for (error, expected) in [
        (changed(&whole, directory + 8, 1), "image.npy is encrypted"),
        (
            changed(&whole, directory + 8, 14 << 16),
            "image.npy has compression method 14, expected 0 (stored) or 8 (deflated)",
        ),
        (changed(&whole, directory + 20, 1 << 30), "it is cut short"),
        (changed(&whole, directory + 24, 1 << 30), "cannot unpack to 1073741824"),
        (changed(&deflated, of_deflated + 24, 0xffff_fffe), "cannot unpack to 4294967294"),
        (changed(&whole, directory + 42, 7), "Invalid signature"),
        (changed(&whole, directory + 42, u32::MAX), "it is cut short or damaged"),
        (changed(&whole, whole.len() - 6, 0xffff_fff0), "Invalid end of central directory"),
        // More members than there are.
        (changed(&whole, whole.len() - 12, 9), "2 members, expected "),
    ] {
        assert!(error.contains(expected), "{expected}: {error}");
    }

    // A directory as large as a disk, and a record of its end as large.
    for (record, directory) in [((1u64 << 40) - 98, 1u64 << 30), (1 << 20, 0)] {
        let path = folder.path().join("sparse.npz");
        let mut file = fs::File::create(&path).unwrap();
        let locator = (1u64 << 40) - 42;
        file.seek(SeekFrom::Start(record)).unwrap();
        let fields = [directory / 64, directory / 64, directory, 1 << 20].map(u64::to_le_bytes);
        let size = (locator - record - 12).to_le_bytes();
        let record = [b"PK\x06\x06", &size[..], &[45, 0, 45, 0], &[0; 8], fields.as_flattened()].concat();
        let at = file.stream_position().unwrap().to_le_bytes();
        file.write_all(&record).unwrap();
        file.seek(SeekFrom::Start(locator)).unwrap();
        let end = [b"PK\x05\x06\0\0\0\0", &[0xff; 12][..], &[0, 0]].concat();
        file.write_all(&[b"PK\x06\x07\0\0\0\0", &at[..], &[1, 0, 0, 0], &end].concat()).unwrap();
        let error = ExtraImages::open(&path, 10).unwrap_err().to_string();
        assert!(error.contains("sparse.npz: a zip directory of "), "{error}");
    }

    let error = ExtraImages::open(&folder.path().join("none.npz"), 10).unwrap_err().to_string();
    assert!(error.contains("none.npz: No such file"), "{error}");
    let error = ExtraImages::open(folder.path(), 10).unwrap_err().to_string();
    assert!(error.contains("a folder, expected a file"), "{error}");
}

#[test]
fn corrupted_images_are_read_and_faults_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let error = || corruptions::open(path, 10).unwrap_err().to_string();
    assert!(error().contains("holds no file of a corruption, expected those of CIFAR-10-C or CIFAR-100-C: labels.npy, gaussian_noise.npy, "));
    // Three images in five severities.
    let images = Images { labels: [1, 2, 3].repeat(SEVERITIES), ..images(15) };
    let pixels = secateur::data::pixel_order::to_pixels(&images.pixels);
    let file = |name: &str, bytes: Vec<u8>| fs::write(path.join(name), bytes).unwrap();
    file("saturate.npy", array("|u1", &[15, 32, 32, 3], &pixels));
    assert!(error().contains("labels.npy: No such file"), "{}", error());
    let label =
        |labels: &[u32]| array("|u1", &[labels.len()], &labels.iter().map(|&l| l as u8).collect::<Vec<_>>());
    file("labels.npy", label(&images.labels[..3]));
    assert!(error().contains("labels.npy: 3 labels, expected 15, one an image"), "{}", error());
    file("labels.npy", label(&images.labels));
    file("fog.npy", array("|u1", &[14, 32, 32, 3], &pixels[..14 * IMAGE_BYTES]));
    assert!(
        error().contains("fog.npy: 14 images, expected a multiple of 5, one of each severity"),
        "{}",
        error()
    );
    file("fog.npy", array("|u1", &[15, 32, 32, 3], &pixels[1..]));
    assert!(error().contains("fog.npy: 46207 bytes, expected 46208"), "{}", error());
    file("fog.npy", array("|u1", &[15, 32, 32, 3], &pixels));
    assert!(
        corruptions::open(path, 3).unwrap_err().to_string().contains("record 2 has label 3, expected 0 to 2")
    );

    let found = corruptions::open(path, 10).unwrap();
    let names: Vec<_> = found.iter().map(|one| (one.name, one.is_standard(), one.count())).collect();
    assert_eq!(names, [("fog", true, 3), ("saturate", false, 3)]);
    assert!(found[0].load(3).unwrap() == images);
    let first = found[1].load(2).unwrap();
    assert!(first == images.select(&[0, 1, 3, 4, 6, 7, 9, 10, 12, 13]));
}
