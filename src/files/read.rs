//! Reads whole files: regular ones, or pipes that are being written to, up to a limit.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};

/// Bytes that a file of each kind holds at most. Real ones are far smaller.
pub mod limit {
    /// Recipes, manifests and other settings.
    pub const SETTINGS: u64 = 1 << 20;
    /// JSON of benches, results and evaluations under way.
    pub const JSON: u64 = 256 << 20;
    /// Metrics and TensorBoard events: 100,000 epochs take 100 MB.
    pub const METRICS: u64 = 256 << 20;
    /// Weights and other tensors: the widest network takes 45 MB.
    pub const TENSORS: u64 = 1 << 30;
}

/// How long a pipe may bring nothing: its writer may be a program that starts slowly.
const PATIENCE: Duration = Duration::from_secs(60);

/// All bytes of the file at `path`, `most` at most. Devices and folders are refused, and so is a pipe that brings nothing for
/// a minute.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    // Without NONBLOCK, opening a pipe waits for its writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    read_open(openat(CWD, path, flags, Mode::empty())?.into(), most, PATIENCE)
}

/// Opens the regular file at `path`, to read it in pieces. Pipes, devices and folders are refused.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file: File = openat(CWD, path, flags, Mode::empty())?.into();
    match FileType::from_raw_mode(fstat(&file)?.st_mode) {
        FileType::RegularFile => Ok(file),
        FileType::Directory => Err(refused("a folder, expected a file")),
        _ => Err(refused("a pipe or a device, expected a file")),
    }
}

/// [`read`] for text.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read(path, most)?).map_err(|error| {
        io::Error::new(io::ErrorKind::InvalidData, format!("not text: {}", error.utf8_error()))
    })
}

/// Whether a file is there. Where that cannot be told (a folder that may not be searched, a disk that fails) it is an error, and no
/// "no".
pub fn is_file(path: &Path) -> io::Result<bool> {
    match std::fs::metadata(path) {
        Ok(entry) => Ok(entry.is_file()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// All bytes of a file that was opened with `NONBLOCK`.
pub(super) fn read_open(mut file: File, most: u64, patience: Duration) -> io::Result<Vec<u8>> {
    let is = fstat(&file)?;
    let mut bytes = Vec::new();
    match FileType::from_raw_mode(is.st_mode) {
        FileType::RegularFile => {
            let size = is.st_size as u64;
            if size > most {
                return Err(too_large(format!("{size} bytes"), most));
            }
            bytes.reserve_exact(size as usize);
            // One byte more shows a file that has grown, and those of /proc say that they are empty.
            file.by_ref().take(most + 1).read_to_end(&mut bytes)?;
        }
        FileType::Fifo => read_pipe(&mut file, most, patience, &mut bytes)?,
        FileType::Directory => return Err(refused("a folder, expected a file")),
        _ => return Err(refused("a device, expected a file")),
    }
    match bytes.len() as u64 > most {
        true => Err(too_large("more bytes".into(), most)),
        false => Ok(bytes),
    }
}

fn read_pipe(file: &mut File, most: u64, patience: Duration, bytes: &mut Vec<u8>) -> io::Result<()> {
    let patience = Timespec::try_from(patience).map_err(io::Error::other)?;
    let mut block = vec![0; 1 << 16];
    while bytes.len() as u64 <= most {
        let mut ready = [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN)];
        if poll(&mut ready, Some(&patience))? == 0 {
            let seconds = patience.tv_sec;
            let reason = format!("a pipe that brings nothing for {seconds} s, expected a file");
            return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
        }
        match file.read(&mut block) {
            Ok(0) => break,
            Ok(read) => bytes.extend(&block[..read]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn too_large(what: String, most: u64) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("{what}, expected at most {most}"))
}

fn refused(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        let error = read(&path, 4).unwrap_err();
        assert_eq!(error.to_string(), "5 bytes, expected at most 4");
        let error = read(folder.path(), 9).unwrap_err();
        assert_eq!(error.to_string(), "a folder, expected a file");
        assert_eq!(read(&folder.path().join("none"), 9).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&path, b"\xff").unwrap();
        assert_eq!(read_text(&path, 9).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn devices_are_refused_and_files_without_a_size_are_bounded() {
        let error = read(Path::new("/dev/zero"), 1 << 20).unwrap_err();
        assert_eq!(error.to_string(), "a device, expected a file");
        assert!(read(Path::new("/proc/self/status"), 1 << 20).unwrap().starts_with(b"Name:"));
        let error = read(Path::new("/proc/self/status"), 5).unwrap_err();
        assert_eq!(error.to_string(), "more bytes, expected at most 5");
    }

    #[test]
    fn a_pipe_is_read_to_its_end_up_to_the_limit_and_a_silent_one_is_given_up() {
        let pipe = |bytes: &'static [u8]| {
            let (reader, mut writer) = io::pipe().unwrap();
            let reader = File::from(std::os::fd::OwnedFd::from(reader));
            rustix::fs::fcntl_setfl(&reader, OFlags::NONBLOCK).unwrap();
            (reader, std::thread::spawn(move || writer.write_all(bytes).map(|()| writer)))
        };
        let long = Duration::from_secs(60);
        let (reader, writer) = pipe(b"12345");
        drop(writer.join().unwrap());
        assert_eq!(read_open(reader, 5, long).unwrap(), b"12345");
        let (reader, writer) = pipe(b"12345");
        assert!(read_open(reader, 4, long).is_err());
        drop(writer.join().unwrap());
        let (reader, writer) = pipe(b"");
        let _writer = writer.join().unwrap();
        assert_eq!(read_open(reader, 5, Duration::ZERO).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
