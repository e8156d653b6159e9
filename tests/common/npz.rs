//! Files of extra images: whole ones, and archives of any members.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::write::DeflateEncoder;
use flate2::{Compression, Crc};
use secateur::data::numpy::header_of;
use secateur::data::{Images, extra, generated};

/// The first `count` generated images that are neither for training nor for testing.
pub fn images(count: usize) -> Images {
    generated::images(generated::Part::Extra, count)
}

/// Writes images as the program does.
pub fn write(path: &Path, images: &Images) {
    let file = fs::File::create(path).unwrap();
    extra::write(file, images.len(), |add| add(&images.pixels).map(|()| images.labels.clone())).unwrap();
}

/// An array as an `.npy` file, or a member of an `.npz`.
pub fn array(dtype: &str, shape: &[usize], values: &[u8]) -> Vec<u8> {
    [header_of(dtype, shape), values.to_vec()].concat()
}

/// Labels of eight bytes each.
pub fn labels(labels: &[i64]) -> Vec<u8> {
    let values: Vec<u8> = labels.iter().flat_map(|label| label.to_le_bytes()).collect();
    array("<i8", &[labels.len()], &values)
}

/// A zip archive without ZIP64.
pub fn archive(members: &[(&str, &[u8])], deflate: bool) -> Vec<u8> {
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in members {
        let mut packed = bytes.to_vec();
        if deflate {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(bytes).unwrap();
            packed = encoder.finish().unwrap();
        }
        let mut crc = Crc::new();
        crc.update(bytes);
        let method = if deflate { 8u16 } else { 0 };
        let mut fields = [&20u16.to_le_bytes()[..], &[0, 0], &method.to_le_bytes(), &[0; 4]].concat();
        fields.extend(
            [crc.sum(), packed.len() as u32, bytes.len() as u32].map(u32::to_le_bytes).as_flattened(),
        );
        fields.extend([name.len() as u16, 0].map(u16::to_le_bytes).as_flattened());
        let header = (archive.len() as u32).to_le_bytes();
        directory.extend([b"PK\x01\x02\x14\0", &fields[..], &[0; 10], &header, name.as_bytes()].concat());
        archive.extend([b"PK\x03\x04", &fields[..], name.as_bytes(), &packed].concat());
    }
    let count = (members.len() as u16).to_le_bytes();
    let (size, start) = ((directory.len() as u32).to_le_bytes(), (archive.len() as u32).to_le_bytes());
    archive.extend(directory);
    archive.extend([b"PK\x05\x06\0\0\0\0", &count[..], &count, &size, &start, &[0, 0]].concat());
    archive
}
