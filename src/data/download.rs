//! Gets the official CIFAR archives: resumable, checked by digest, unpacked whole or not at all.
//!
//! A transfer grows `ARCHIVE.part` and is continued by an HTTP Range request, in the same call while each attempt
//! brings bytes, or by running the command again. Nothing that is already on disk is changed or removed but that part
//! file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::read::GzDecoder;
use ureq::http::header::{CONTENT_RANGE, RANGE};

use super::cifar::{self, CIFAR10, CIFAR100, Layout};
use super::{DataError, SetKind, source};
use crate::digest::sha256_of;
use crate::files::{Folder, How};

/// How the name of a folder begins until its files are whole.
const UNPACKING: &str = ".unpacking-";

/// Where the archives are published.
pub const BASE_URL: &str = "https://www.cs.toronto.edu/~kriz";

/// One archive of the data set's web page.
#[derive(Clone, Debug)]
pub struct Archive {
    pub layout: Layout,
    pub file: String,
    pub bytes: u64,
    /// SHA-256 in lower-case hex.
    pub sha256: String,
}

impl Archive {
    /// The official archive of a set; `None` for the generated one.
    ///
    /// The web page publishes MD5 only; size and SHA-256 are those that TensorFlow Datasets records for the same URLs.
    pub fn official(set: SetKind) -> Option<Self> {
        let (layout, file, bytes, sha256) = match set {
            SetKind::Cifar10 => (
                CIFAR10,
                "cifar-10-binary.tar.gz",
                170_052_171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
            SetKind::Cifar100 => (
                CIFAR100,
                "cifar-100-binary.tar.gz",
                168_513_733,
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            ),
            SetKind::Generated => return None,
        };
        Some(Self { layout, file: file.into(), bytes, sha256: sha256.into() })
    }
}

/// How a download ended well; the folder is what `--data` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to do: the files are those of a verified archive.
    AlreadyThere(PathBuf),
    /// Nothing done: the files have the right sizes, and no digests are recorded to tell more.
    Unverified(PathBuf),
    Unpacked(PathBuf),
}

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error("{} is in the way: {source}; move it elsewhere and run again", folder.display())]
    InTheWay { folder: PathBuf, source: Box<DataError> },
    #[error(
        "{url}: {reason}; {kept} of {expected} bytes are kept in {}, run the same command again to continue", part.display()
    )]
    Interrupted { url: String, reason: String, kept: u64, expected: u64, part: PathBuf },
    #[error("{url}: the server answers {status}, expected 200 or 206; check the address (--url)")]
    Status { url: String, status: u16 },
    #[error(
        "{url}: the server does not continue from byte {have} ({answer}); remove {} and run again to start from the first byte", part.display()
    )]
    Resume { url: String, have: u64, answer: String, part: PathBuf },
    #[error("{url}: {actual} bytes, expected {expected}; this is not the archive")]
    Length { url: String, actual: u64, expected: u64 },
    #[error("{}: SHA-256 {actual}, expected {expected}; {advice}", path.display())]
    Digest { path: PathBuf, actual: String, expected: String, advice: &'static str },
    #[error("{}: {source}; the archive cannot be unpacked", path.display())]
    Unpack { path: PathBuf, source: io::Error },
    #[error("{}: another download into this folder: {holder}; wait until it has ended", path.display())]
    InUse { path: PathBuf, holder: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Data(#[from] DataError),
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> DownloadError + '_ {
    |source| DownloadError::Io { path: path.into(), source }
}

/// Makes `out` hold the set: downloads, checks and unpacks the archive unless it is there already.
///
/// `progress` is told the bytes on disk after each block. An archive that lies in `out` under its own name is used
/// and kept; the part file goes once it is unpacked.
pub fn fetch(
    archive: &Archive,
    base_url: &str,
    out: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Outcome, DownloadError> {
    let folder = out.join(archive.layout.folder);
    if folder.try_exists().map_err(io_at(&folder))? {
        let found = source::find(&archive.layout, &folder);
        return match found.and_then(|place| cifar::verify(&archive.layout, &place)) {
            Ok(true) => Ok(Outcome::AlreadyThere(folder)),
            Ok(false) => Ok(Outcome::Unverified(folder)),
            // It may be whole.
            Err(error @ DataError::Io { .. }) => Err(error.into()),
            Err(source) => Err(DownloadError::InTheWay { folder, source: source.into() }),
        };
    }
    let place = Folder::from(out);
    place.create().map_err(io_at(out))?;
    let place = place.hold().map_err(io_at(out))?;
    let lock = place.lock(format!("{}.lock", archive.file)).map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => DownloadError::InUse { path: out.into(), holder: error.to_string() },
        _ => io_at(out)(error),
    })?;
    let _lock = lock.temporary();
    // Unpacking takes seconds.
    place.remove_strays(UNPACKING, Duration::from_secs(3600));
    if place.has(&archive.file).map_err(io_at(out))? {
        check_digest(archive, &place, &archive.file, "move it elsewhere to download it anew")?;
        unpack(archive, &place, &archive.file)?;
        return Ok(Outcome::Unpacked(folder));
    }
    let part = format!("{}.part", archive.file);
    let removed = || place.remove_file(&part).map_err(io_at(&out.join(&part)));
    let mut file = place.file(&part, How::Append).map_err(io_at(&out.join(&part)))?;
    transfer(archive, base_url, &mut file, &out.join(&part), progress)?;
    if let Err(error) = check_digest(archive, &place, &part, "the damaged download is removed, run again") {
        // Ours alone, and no Range request could mend it.
        removed()?;
        return Err(error);
    }
    unpack(archive, &place, &part)?;
    removed()?;
    Ok(Outcome::Unpacked(folder))
}

/// Completes the part file, which keeps what an earlier run left; goes on after a broken connection as long as each attempt brings bytes.
fn transfer(
    archive: &Archive,
    base_url: &str,
    file: &mut File,
    part: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<(), DownloadError> {
    let url = format!("{}/{}", base_url.trim_end_matches('/'), archive.file);
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_per_read(Some(Duration::from_secs(60)))
        .user_agent(concat!("secateur/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    loop {
        let before = file.metadata().map_err(io_at(part))?.len();
        if before > archive.bytes {
            file.set_len(0).map_err(io_at(part))?;
            continue;
        }
        progress(before);
        if before == archive.bytes {
            return file.sync_all().map_err(io_at(part));
        }
        let Err(reason) = attempt(&agent, &url, archive, before, file, part, progress)? else {
            continue;
        };
        let kept = file.metadata().map_err(io_at(part))?.len();
        if kept <= before {
            let (part, expected) = (part.into(), archive.bytes);
            return Err(DownloadError::Interrupted { url, reason, kept, expected, part });
        }
    }
}

/// One request from byte `have` on. The inner result is an interruption that a further attempt may overcome.
fn attempt(
    agent: &ureq::Agent,
    url: &str,
    archive: &Archive,
    have: u64,
    file: &mut File,
    part: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Result<(), String>, DownloadError> {
    let mut request = agent.get(url);
    if have > 0 {
        request = request.header(RANGE, format!("bytes={have}-"));
    }
    let response = match request.call() {
        Ok(response) => response,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let mut done = match response.status().as_u16() {
        206 if resumes_at(&response, have) => have,
        // The whole file, asked for or not.
        200 => 0,
        206 | 416 if have > 0 => {
            let answer = match (response.status().as_u16(), content_range(&response)) {
                (206, Some(range)) => format!("it sends {range}"),
                (status, _) => format!("it returns {status}"),
            };
            return Err(DownloadError::Resume { url: url.into(), have, answer, part: part.into() });
        }
        status => return Err(DownloadError::Status { url: url.into(), status }),
    };
    if let Some(rest) = response.body().content_length().filter(|rest| done + rest != archive.bytes) {
        return Err(DownloadError::Length { url: url.into(), actual: done + rest, expected: archive.bytes });
    }
    file.set_len(done).map_err(io_at(part))?;
    let mut body = response.into_body().into_reader();
    let mut block = vec![0; 1 << 16];
    loop {
        let read = match body.read(&mut block) {
            Ok(0) if done < archive.bytes => return Ok(Err("the connection closed early".into())),
            Ok(0) => return Ok(Ok(())),
            Ok(read) => read,
            Err(error) => return Ok(Err(error.to_string())),
        };
        done += read as u64;
        if done > archive.bytes {
            return Err(DownloadError::Length { url: url.into(), actual: done, expected: archive.bytes });
        }
        file.write_all(&block[..read]).map_err(io_at(part))?;
        progress(done);
    }
}

/// Whether a 206 answer starts at the byte asked for.
fn resumes_at(response: &ureq::http::Response<ureq::Body>, have: u64) -> bool {
    content_range(response).is_some_and(|range| range.starts_with(&format!("bytes {have}-")))
}

fn content_range(response: &ureq::http::Response<ureq::Body>) -> Option<&str> {
    response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok())
}

fn check_digest(
    archive: &Archive,
    place: &Folder,
    name: &str,
    advice: &'static str,
) -> Result<(), DownloadError> {
    let path = &place.path().join(name);
    let actual = place.file(name, How::Read).and_then(sha256_of).map_err(io_at(path))?;
    if actual == archive.sha256 {
        return Ok(());
    }
    Err(DownloadError::Digest { path: path.into(), actual, expected: archive.sha256.clone(), advice })
}

/// Unpacks the files of the set into a temporary folder next to their place, checks them, and renames the folder.
fn unpack(archive: &Archive, out: &Folder, name: &str) -> Result<(), DownloadError> {
    let staging = format!("{UNPACKING}{}", archive.file);
    // Left by a download that was killed: the lock says that none is under way.
    if out.has(&staging).map_err(io_at(out.path()))? {
        out.remove(&staging).map_err(io_at(out.path()))?;
    }
    if let Err(error) = unpack_into(archive, out, name, &out.folder(&staging)) {
        // The first error is the one to report.
        let _ = out.remove(&staging);
        return Err(error);
    }
    out.rename(&staging, archive.layout.folder).and_then(|()| out.sync()).map_err(io_at(out.path()))
}

fn unpack_into(archive: &Archive, out: &Folder, name: &str, folder: &Folder) -> Result<(), DownloadError> {
    let path = &out.path().join(name);
    let unpack = |source| DownloadError::Unpack { path: path.into(), source };
    folder.create().map_err(io_at(folder.path()))?;
    let file = out.file(name, How::Read).map_err(io_at(path))?;
    let mut entries = tar::Archive::new(GzDecoder::new(io::BufReader::new(file)));
    for entry in entries.entries().map_err(unpack)? {
        let mut entry = entry.map_err(unpack)?;
        let name = entry.path().map_err(unpack)?.into_owned();
        // Only names of the layout: an archive cannot write elsewhere.
        let known =
            archive.layout.files().find(|(file, _)| name == Path::new(archive.layout.folder).join(file));
        let Some((name, records)) = known.filter(|_| entry.header().entry_type().is_file()) else { continue };
        let target = folder.path().join(name);
        let mut target_file = folder.file(name, How::Empty).map_err(io_at(&target))?;
        // One byte more than belongs there: enough for the size check to see that there is too much.
        let limit = (records * archive.layout.record()) as u64 + 1;
        io::copy(&mut entry.by_ref().take(limit), &mut target_file).map_err(unpack)?;
        target_file.sync_all().map_err(io_at(&target))?;
    }
    source::find(&archive.layout, folder.path())?;
    Ok(cifar::record_sums(&archive.layout, folder)?)
}
