//! NumPy arrays in files, `.npy` or members of `.npz`: images of bytes and integer labels. Type, shape and size are checked before
//! the values are read.

use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::pixel_order::to_planes;
use super::zip::Member;
use super::{DataError, IMAGE_BYTES};
use crate::files;

/// What a header begins with, before its version.
const MAGIC: &[u8] = b"\x93NUMPY";
/// Bytes of a header that are looked at; NumPy writes 128.
const MAX_HEADER: u32 = 1 << 16;
/// Images of one array; the largest published sets have 50 million.
pub const MAX_IMAGES: u64 = 100_000_000;
/// Images of a [`ArrayFile::chunks`] chunk: 12 MiB.
const CHUNK: usize = 4096;

type Result<T> = std::result::Result<T, DataError>;

/// An array in a file: of known type and shape, its values unread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrayFile {
    path: PathBuf,
    /// Where the file is an archive.
    pub member: Option<Member>,
    /// As NumPy writes it: "|u1" for bytes.
    dtype: String,
    shape: Vec<u64>,
    /// Bytes of the header, and of header and values.
    header: u64,
    size: u64,
}

impl ArrayFile {
    /// The array of an `.npy` file.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::Array`] for what is no array, or one in Fortran order.
    pub fn open(path: &Path) -> Result<Self> {
        Self::read_header(path, None)
    }

    /// The array that is a member of the archive at `path`.
    ///
    /// # Errors
    /// As [`ArrayFile::open`].
    pub fn open_member(path: &Path, member: Member) -> Result<Self> {
        Self::read_header(path, Some(member))
    }

    fn read_header(path: &Path, member: Option<Member>) -> Result<Self> {
        let (dtype, shape) = (String::new(), Vec::new());
        let mut array = Self { path: path.into(), member, dtype, shape, header: 0, size: 0 };
        array.size = match &array.member {
            Some(member) => member.size,
            None => {
                files::open(path).and_then(|file| file.metadata()).map_err(|error| array.io(error))?.len()
            }
        };
        let text = array.bytes().and_then(|mut bytes| header(&mut bytes)).map_err(|error| array.io(error))?;
        let Some((dtype, fortran, shape)) = text.and_then(|(len, text)| {
            array.header = len;
            parsed(&text)
        }) else {
            return Err(array.wrong("no header of a NumPy array of one type".into()));
        };
        if fortran {
            return Err(array.wrong("fortran_order True, expected False (C order)".into()));
        }
        Ok(Self { dtype, shape, ..array })
    }

    /// Of the array, for messages.
    fn name(&self) -> String {
        let path = self.path.display();
        self.member.as_ref().map_or(path.to_string(), |member| format!("{path}: {}", member.name))
    }

    fn io(&self, source: io::Error) -> DataError {
        DataError::Io { path: self.name().into(), source }
    }

    fn wrong(&self, reason: String) -> DataError {
        DataError::Array { array: self.name(), reason }
    }

    /// The bytes of header and values.
    fn bytes(&self) -> io::Result<Box<dyn Read>> {
        let file = files::open(&self.path)?;
        Ok(match &self.member {
            Some(member) => member.open(file)?,
            None => Box::new(BufReader::new(file)),
        })
    }

    /// The bytes of the values.
    fn values(&self) -> io::Result<Box<dyn Read>> {
        let mut bytes = self.bytes()?;
        io::copy(&mut bytes.by_ref().take(self.header), &mut io::sink())?;
        Ok(bytes)
    }

    /// Refuses another shape than N rows of shape `row`, and another number of bytes than that of its values; returns N.
    fn rows(&self, row: &[u64], item: u64) -> Result<usize> {
        let shape = |shape: &mut dyn Iterator<Item = String>| shape.collect::<Vec<_>>().join(", ");
        let (count, rest) = match self.shape.split_first() {
            Some((&count, rest)) if rest == row => (count, rest),
            _ => {
                let actual = shape(&mut self.shape.iter().map(u64::to_string));
                let expected = shape(&mut ["N".into()].into_iter().chain(row.iter().map(u64::to_string)));
                return Err(self.wrong(format!("shape ({actual}), expected ({expected})")));
            }
        };
        if count == 0 || count > MAX_IMAGES {
            return Err(self.wrong(format!("{count} rows, expected 1 to {MAX_IMAGES}")));
        }
        let row = item * rest.iter().product::<u64>();
        let expected = self.header + count * row;
        if self.size != expected {
            let actual = self.size;
            return Err(self.wrong(format!(
                "{actual} bytes, expected {expected} (a header of {} and {count} times {row}); the file is cut short or \
                 damaged",
                self.header
            )));
        }
        Ok(count as usize)
    }

    /// How many images it holds: N x 32 x 32 x 3 bytes, the colours of a pixel next to each other.
    ///
    /// # Errors
    /// [`DataError::Array`] for another type, shape or size.
    pub fn images(&self) -> Result<usize> {
        if self.dtype != "|u1" {
            return Err(self.wrong(format!("dtype {}, expected |u1 (uint8)", self.dtype)));
        }
        self.rows(&[32, 32, 3], 1)
    }

    /// All its values as labels of `images` images: a little-endian integer each, below `classes`.
    ///
    /// # Errors
    /// [`DataError::Array`] for another type, shape or size, [`DataError::Label`] for another value.
    pub fn labels(&self, images: usize, classes: usize) -> Result<Vec<u32>> {
        let (signed, item) = match self.dtype.as_str() {
            "|u1" => (false, 1),
            "|i1" => (true, 1),
            "<u2" => (false, 2),
            "<i2" => (true, 2),
            "<u4" => (false, 4),
            "<i4" => (true, 4),
            "<u8" => (false, 8),
            "<i8" => (true, 8),
            other => {
                let expected = "an integer, little-endian, such as <i8 (int64)";
                return Err(self.wrong(format!("dtype {other}, expected {expected}")));
            }
        };
        let count = self.rows(&[], item as u64)?;
        if count != images {
            return Err(self.wrong(format!("{count} labels, expected {images}, one an image")));
        }
        let mut values = self.values().map_err(|error| self.io(error))?;
        let (mut labels, mut block) = (Vec::new(), vec![0; item * CHUNK]);
        while labels.len() < count {
            let block = &mut block[..item * (count - labels.len()).min(CHUNK)];
            values.read_exact(block).map_err(|error| self.io(error))?;
            for value in block.chunks_exact(item) {
                let negative = signed && value.last().is_some_and(|byte| byte & 0x80 != 0);
                let mut wide = if negative { [0xff; 8] } else { [0; 8] };
                wide[..item].copy_from_slice(value);
                let (actual, record) = (i64::from_le_bytes(wide), labels.len());
                if !(0..classes as i64).contains(&actual) {
                    let path = self.name().into();
                    return Err(DataError::Label { path, record, what: "label", actual, classes });
                }
                labels.push(actual as u32);
            }
        }
        Ok(labels)
    }

    /// The first `count` images, some thousand at a time, each as 3,072 bytes by planes: see [`super::Images::pixels`].
    ///
    /// # Errors
    /// Those of [`ArrayFile::images`]; of a chunk [`DataError::Io`], where the file cannot be read or unpacked or its CRC-32 is
    /// wrong.
    pub fn chunks(&self, count: usize) -> Result<ImageChunks<'_>> {
        let left = count.min(self.images()?);
        let values = self.values().map_err(|error| self.io(error))?;
        Ok(ImageChunks { array: self, values, left })
    }
}

/// See [`ArrayFile::chunks`].
pub struct ImageChunks<'a> {
    array: &'a ArrayFile,
    values: Box<dyn Read>,
    left: usize,
}

impl Iterator for ImageChunks<'_> {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        let count = self.left.min(CHUNK);
        if count == 0 {
            return None;
        }
        let mut pixels = vec![0; count * IMAGE_BYTES];
        let read = self.values.read_exact(&mut pixels);
        self.left = if read.is_ok() { self.left - count } else { 0 };
        Some(read.map(|()| to_planes(&pixels)).map_err(|error| self.array.io(error)))
    }
}

/// Length and text of the header; `None` where there is none.
fn header(bytes: &mut impl Read) -> io::Result<Option<(u64, String)>> {
    let mut read = |count: u32| -> io::Result<Vec<u8>> {
        let mut read = Vec::new();
        bytes.by_ref().take(count.into()).read_to_end(&mut read).map(|_| read)
    };
    let start = read(8)?;
    let version = match start.strip_prefix(MAGIC) {
        Some(&[version @ 1..=3, _]) => version,
        _ => return Ok(None),
    };
    let len_bytes = if version == 1 { 2 } else { 4 };
    let mut len = [0; 4];
    let read_len = read(len_bytes)?;
    len[..read_len.len()].copy_from_slice(&read_len);
    let len = u32::from_le_bytes(len);
    if len > MAX_HEADER {
        return Ok(None);
    }
    let text = String::from_utf8(read(len)?).ok().filter(|text| text.len() == len as usize);
    Ok(text.map(|text| (u64::from(8 + len_bytes + len), text)))
}

/// Type, whether in Fortran order, and shape, of a header's dict.
fn parsed(text: &str) -> Option<(String, bool, Vec<u64>)> {
    let text = text.replace('"', "'");
    let entry = |key: &str| Some(text.split_once(&format!("'{key}':"))?.1.trim_start());
    let (dtype, _) = entry("descr")?.strip_prefix('\'')?.split_once('\'')?;
    let order = entry("fortran_order")?;
    let fortran = order.starts_with("True");
    let (shape, _) = entry("shape")?.strip_prefix('(')?.split_once(')')?;
    let sides = shape.split(',').map(str::trim).filter(|side| !side.is_empty());
    let shape = sides.map(|side| side.parse().ok()).collect::<Option<Vec<u64>>>()?;
    (fortran || order.starts_with("False")).then(|| (dtype.into(), fortran, shape))
}

/// The header of an array in C order, as NumPy writes it: a multiple of 64 bytes.
pub fn header_of(dtype: &str, shape: &[usize]) -> Vec<u8> {
    // "(3,)" and "(3, 4, )" are tuples, too.
    let shape: String = shape.iter().map(|side| format!("{side}, ")).collect();
    let text = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({shape}), }}");
    let len = (10 + text.len() + 1).next_multiple_of(64) - 10;
    [MAGIC, &[1, 0], &(len as u16).to_le_bytes(), format!("{text:<0$}\n", len - 1).as_bytes()].concat()
}
