//! Zip archives as `.npz` files are: members stored or deflated, with the 64-bit sizes of ZIP64. Format: PKWARE's APPNOTE 6.3.
//!
//! The directory, two ways to unpack and one to pack are all that there is to it: less than what a dependency would take to hold to
//! the bounds below.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};

use flate2::Crc;
use flate2::bufread::DeflateDecoder;

const LOCAL: u32 = 0x0403_4b50;
const DESCRIPTOR: u32 = 0x0807_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;
const END: u32 = 0x0605_4b50;

const STORED: u16 = 0;
const DEFLATED: u16 = 8;
const ENCRYPTED: u16 = 1;
/// The extra field of 64-bit values.
const ZIP64: u16 = 1;

/// Bytes of the records, without what is of variable length.
const LOCAL_BYTES: u64 = 30;
const LOCATOR64_BYTES: usize = 20;
const END64_BYTES: u64 = 56;
const END_BYTES: usize = 22;
/// Bytes of a directory that are looked at; an `.npz` file takes some hundred.
const MAX_DIRECTORY: u64 = 1 << 20;
/// DEFLATE packs no tighter than this.
const MAX_RATIO: u64 = 1032;

/// One file of an archive. Its bytes lie inside the archive, and its size is one that they can unpack to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    /// Bytes, unpacked.
    pub size: u64,
    /// Of the unpacked bytes.
    pub crc32: u32,
    deflated: bool,
    packed: u64,
    /// Where the packed bytes begin.
    start: u64,
}

fn wrong(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// Every member of an archive, in the order of its directory.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for what is no archive, or one that is cut short, encrypted or packed otherwise.
pub fn members(file: &mut File) -> io::Result<Vec<Member>> {
    let len = file.metadata()?.len();
    let tail = (END_BYTES as u64 + u64::from(u16::MAX)).min(len);
    let tail = bytes_at(file, len - tail, tail)?;
    let end = end_record(&tail)
        .ok_or_else(|| wrong("no zip directory at its end: it is cut short, or no .npz file"))?;
    let mut fields = Fields(&tail[end + 10..]);
    let (mut count, mut size, mut start) =
        (u64::from(fields.u16()?), u64::from(fields.u32()?), u64::from(fields.u32()?));
    if let Some(locator) = end.checked_sub(LOCATOR64_BYTES)
        && tail[locator..].starts_with(&LOCATOR64.to_le_bytes())
    {
        let record = bytes_at(file, Fields(&tail[locator + 8..]).u64()?, END64_BYTES)?;
        let mut fields = Fields(&record);
        if fields.u32()? != END64 {
            return Err(wrong("its zip directory is damaged"));
        }
        fields.bytes(28)?;
        (count, size, start) = (fields.u64()?, fields.u64()?, fields.u64()?);
    }
    if size > MAX_DIRECTORY {
        return Err(wrong(format!("a zip directory of {size} bytes, expected at most {MAX_DIRECTORY}")));
    }
    let directory = bytes_at(file, start, size)?;
    let mut fields = Fields(&directory);
    (0..count).map(|_| member(file, len, &mut fields)).collect()
}

/// Where the end record begins: the last one whose comment reaches to the end.
fn end_record(tail: &[u8]) -> Option<usize> {
    (0..=tail.len().checked_sub(END_BYTES)?).rev().find(|&at| {
        let comment = u16::from_le_bytes([tail[at + 20], tail[at + 21]]);
        tail[at..].starts_with(&END.to_le_bytes()) && tail.len() - at - END_BYTES == usize::from(comment)
    })
}

/// The next member of the directory, of an archive of `len` bytes.
fn member(file: &mut File, len: u64, fields: &mut Fields) -> io::Result<Member> {
    if fields.u32()? != CENTRAL {
        return Err(wrong("its zip directory is damaged"));
    }
    fields.bytes(4)?;
    let (flags, method) = (fields.u16()?, fields.u16()?);
    fields.bytes(4)?;
    let crc32 = fields.u32()?;
    let (packed, size) = (fields.u32()?, fields.u32()?);
    let (name, extra, comment) = (fields.u16()?, fields.u16()?, fields.u16()?);
    fields.bytes(8)?;
    let header = fields.u32()?;
    let name = String::from_utf8_lossy(fields.bytes(name.into())?).into_owned();
    let mut wide = zip64(fields.bytes(extra.into())?)?;
    fields.bytes(comment.into())?;
    // The extra field has those that do not fit into 32 bits, in this order.
    let mut whole = |narrow: u32| if narrow == u32::MAX { wide.u64() } else { Ok(narrow.into()) };
    let (size, packed, header) = (whole(size)?, whole(packed)?, whole(header)?);
    if flags & ENCRYPTED != 0 {
        return Err(wrong(format!("{name} is encrypted, expected it stored or deflated")));
    }
    if method != STORED && method != DEFLATED {
        return Err(wrong(format!(
            "{name} has compression method {method}, expected {STORED} (stored) or {DEFLATED} (deflated)"
        )));
    }

    let local = bytes_at(file, header, LOCAL_BYTES)?;
    let mut local = Fields(&local);
    if local.u32()? != LOCAL {
        return Err(wrong(format!("{name} is not where the zip directory says; the file is damaged")));
    }
    local.bytes(22)?;
    let start = header + LOCAL_BYTES + u64::from(local.u16()?) + u64::from(local.u16()?);
    if packed > len.saturating_sub(start) {
        return Err(wrong(format!(
            "{name} has {packed} bytes from byte {start} on, and the file {len}; it is cut short"
        )));
    }
    let deflated = method == DEFLATED;
    if if deflated { size / MAX_RATIO > packed } else { size != packed } {
        return Err(wrong(format!("{name}: {packed} bytes cannot unpack to {size}; the file is damaged")));
    }
    Ok(Member { name, size, crc32, deflated, packed, start })
}

/// The values of the extra field of 64-bit ones; none where there is no such field.
fn zip64(extra: &[u8]) -> io::Result<Fields<'_>> {
    let mut fields = Fields(extra);
    while !fields.0.is_empty() {
        let (id, len) = (fields.u16()?, fields.u16()?);
        let body = fields.bytes(len.into())?;
        if id == ZIP64 {
            return Ok(Fields(body));
        }
    }
    Ok(fields)
}

/// `count` bytes of a file, from byte `at` on.
fn bytes_at(file: &mut File, at: u64, count: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(at))?;
    file.take(count).read_to_end(&mut bytes)?;
    match bytes.len() as u64 == count {
        true => Ok(bytes),
        false => Err(wrong("its zip directory leads beyond its end: it is cut short or damaged")),
    }
}

/// Little-endian fields, one after another.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let (bytes, rest) =
            self.0.split_at_checked(count).ok_or_else(|| wrong("its zip directory is damaged"))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    fn u16(&mut self) -> io::Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> io::Result<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

impl Member {
    /// The unpacked bytes, from the archive that the member is of. With the last of them comes an error where their CRC-32 is wrong.
    pub fn open(&self, mut file: File) -> io::Result<MemberReader> {
        file.seek(SeekFrom::Start(self.start))?;
        let packed = BufReader::with_capacity(1 << 16, file).take(self.packed);
        let bytes: Box<dyn Read> = match self.deflated {
            true => Box::new(DeflateDecoder::new(packed)),
            false => Box::new(packed),
        };
        Ok(MemberReader { bytes, left: self.size, crc: Crc::new(), expected: self.crc32 })
    }
}

/// See [`Member::open`].
pub struct MemberReader {
    bytes: Box<dyn Read>,
    left: u64,
    crc: Crc,
    expected: u32,
}

impl Read for MemberReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.bytes.read(&mut buffer[..most])?;
        if read == 0 && most > 0 {
            return Err(wrong(format!("{} bytes are missing; the file is cut short or damaged", self.left)));
        }
        self.crc.update(&buffer[..read]);
        self.left -= read as u64;
        let actual = self.crc.sum();
        if self.left == 0 && read > 0 && actual != self.expected {
            return Err(wrong(format!(
                "CRC-32 {actual:08x}, expected {:08x}; the file is damaged",
                self.expected
            )));
        }
        Ok(read)
    }
}

/// Writes an archive of stored members, to what need not be able to seek: size and CRC-32 of a member stand after it.
pub struct Writer<W> {
    out: W,
    /// Bytes written.
    at: u64,
    /// The member that is being written: its name, where its header lies, where its bytes begin, and their CRC-32.
    member: Option<(String, u64, u64, Crc)>,
    directory: Vec<u8>,
    count: u16,
}

/// The same in the header of a member and in its entry of the directory: version 4.5, sizes after the bytes, stored, 1 January 1980.
const COMMON: [u8; 10] = [45, 0, 8, 0, 0, 0, 0, 0, 0x21, 0];
/// Stands for a 32-bit value that the extra field has.
const WIDE: [u8; 4] = [0xff; 4];

impl<W: Write> Writer<W> {
    pub fn new(out: W) -> Self {
        Self { out, at: 0, member: None, directory: Vec::new(), count: 0 }
    }

    /// Ends the member before, and begins the next one.
    pub fn begin(&mut self, name: &str) -> io::Result<()> {
        self.end()?;
        let header = self.at;
        let name_len = (name.len() as u16).to_le_bytes();
        self.put(&[&LOCAL.to_le_bytes(), &COMMON[..], &[0; 4], &WIDE, &WIDE, &name_len, &[20, 0]].concat())?;
        self.put(&[name.as_bytes(), &ZIP64.to_le_bytes(), &[16, 0], &[0; 16]].concat())?;
        self.member = Some((name.into(), header, self.at, Crc::new()));
        Ok(())
    }

    /// Adds to the member that was begun last.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some((.., crc)) = &mut self.member {
            crc.update(bytes);
        }
        self.put(bytes)
    }

    fn end(&mut self) -> io::Result<()> {
        let Some((name, header, start, crc)) = self.member.take() else { return Ok(()) };
        let (size, crc) = ((self.at - start).to_le_bytes(), crc.sum().to_le_bytes());
        self.put(&[&DESCRIPTOR.to_le_bytes(), &crc[..], &size, &size].concat())?;
        let name_len = (name.len() as u16).to_le_bytes();
        let entry = [&CENTRAL.to_le_bytes(), &[45, 0][..], &COMMON, &crc, &WIDE, &WIDE, &name_len, &[28, 0]];
        let extra = [&ZIP64.to_le_bytes(), &[24, 0][..], &size, &size, &header.to_le_bytes()];
        self.directory.extend([entry.concat(), [0; 10].to_vec(), WIDE.to_vec()].concat());
        self.directory.extend([name.as_bytes(), &extra.concat()].concat());
        self.count += 1;
        Ok(())
    }

    /// Writes the directory.
    pub fn finish(mut self) -> io::Result<()> {
        self.end()?;
        let (start, directory) = (self.at, std::mem::take(&mut self.directory));
        self.put(&directory)?;
        let end64 = self.at;
        let (count, size) = (u64::from(self.count).to_le_bytes(), (end64 - start).to_le_bytes());
        let record = [&END64.to_le_bytes(), &44u64.to_le_bytes()[..], &[45, 0, 45, 0], &[0; 8]];
        self.put(&[&record.concat(), &count[..], &count, &size, &start.to_le_bytes()].concat())?;
        let locator = [&LOCATOR64.to_le_bytes(), &[0; 4][..], &end64.to_le_bytes(), &[1, 0, 0, 0]];
        let (end, count) = (END.to_le_bytes(), self.count.to_le_bytes());
        let end = [&end, &[0; 4][..], &count, &count, &WIDE, &WIDE, &[0, 0]];
        self.put(&[locator.concat(), end.concat()].concat())?;
        self.out.flush()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}
