//! The members of `.npz` files, which are zip archives, within bounds: a directory is small, and a member lies inside the file and has
//! a size that its bytes can unpack to.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use flate2::bufread::DeflateDecoder;
use rawzip::{CompressionMethod, ErrorKind, FileReader, ZipArchive, ZipArchiveEntryWayfinder};

/// Bytes of a directory that are looked at; an `.npz` file takes some hundred.
const MAX_DIRECTORY: u64 = 1 << 20;
/// Holds any entry of a directory: three fields of 64 KiB.
const BUFFER: usize = 1 << 18;
/// How far from its end an archive's end record begins: a comment has 64 KiB.
const MAX_END: u64 = (1 << 16) + 22;
/// DEFLATE packs no tighter than this.
const MAX_RATIO: u64 = 1032;

/// One file of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    /// Bytes, unpacked.
    pub size: u64,
    /// Of the unpacked bytes.
    pub crc32: u32,
    deflated: bool,
    entry: ZipArchiveEntryWayfinder,
}

fn wrong(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// An error of the library in words of its own, but for those of the disk.
pub fn io_error(error: rawzip::Error) -> io::Error {
    match error.into_kind() {
        ErrorKind::IO(error) if error.kind() != io::ErrorKind::UnexpectedEof => error,
        kind => wrong(format!("{kind}; it is cut short or damaged, or no .npz file")),
    }
}

fn archive(file: File, buffer: &mut [u8]) -> io::Result<ZipArchive<FileReader>> {
    let locator = ZipArchive::with_max_search_space(MAX_END);
    locator.locate_in_file(file, buffer).map_err(|(_, error)| io_error(error))
}

/// Every member of an archive, in the order of its directory.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for what is no archive, or one that is cut short, encrypted or packed otherwise.
pub fn members(file: File) -> io::Result<Vec<Member>> {
    let len = file.metadata()?.len();
    let buffer = &mut vec![0; BUFFER];
    let archive = archive(file, buffer)?;
    let directory = archive.eocd_offset() - archive.directory_offset().min(archive.eocd_offset());
    if directory > MAX_DIRECTORY {
        return Err(wrong(format!("a zip directory of {directory} bytes, expected at most {MAX_DIRECTORY}")));
    }
    let (mut entries, mut members) = (archive.entries(buffer), Vec::new());
    while let Some(record) = entries.next_entry().map_err(io_error)? {
        let name = String::from_utf8_lossy(record.file_path().as_ref()).into_owned();
        let (method, entry) = (record.compression_method(), record.wayfinder());
        if record.flags().is_encrypted() {
            return Err(wrong(format!("{name} is encrypted, expected it stored or deflated")));
        }
        let deflated = method == CompressionMethod::DEFLATE;
        if !deflated && method != CompressionMethod::STORE {
            let method = method.as_u16();
            return Err(wrong(format!(
                "{name} has compression method {method}, expected 0 (stored) or 8 (deflated)"
            )));
        }
        let (size, packed) = (record.uncompressed_size_hint(), record.compressed_size_hint());
        let (start, end) = archive.get_entry(entry).map_err(io_error)?.compressed_data_range();
        if end > len {
            return Err(wrong(format!(
                "{name} has {packed} bytes from byte {start} on, and the file {len}; it is cut short"
            )));
        }
        if if deflated { size / MAX_RATIO > packed } else { size != packed } {
            return Err(wrong(format!(
                "{name}: {packed} bytes cannot unpack to {size}; the file is damaged"
            )));
        }
        members.push(Member { name, size, crc32: record.crc32(), deflated, entry });
    }
    let (actual, expected) = (members.len() as u64, archive.entries_hint());
    match actual == expected {
        true => Ok(members),
        false => Err(wrong(format!("{actual} members, expected {expected}; it is cut short or damaged"))),
    }
}

impl Member {
    /// The unpacked bytes, from the archive that the member is of. With the last of them comes an error where their number or CRC-32
    /// is wrong.
    pub fn open(&self, file: File) -> io::Result<Box<dyn Read>> {
        let mut packed = file.try_clone()?;
        let archive = archive(file, &mut vec![0; BUFFER])?;
        let entry = archive.get_entry(self.entry).map_err(io_error)?;
        packed.seek(SeekFrom::Start(entry.compressed_data_range().0))?;
        let packed = BufReader::with_capacity(1 << 16, packed).take(self.entry.compressed_size_hint());
        Ok(match self.deflated {
            true => Box::new(entry.verifying_reader(DeflateDecoder::new(packed))),
            false => Box::new(entry.verifying_reader(packed)),
        })
    }
}
