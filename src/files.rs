//! Whole files or none: every file a run leaves behind is written under a temporary name and renamed.
//!
//! Checked by its own tests. Called by weights files, checkpoints, recipes and the data download.

use std::io::{self, Write};
use std::path::Path;

/// What to do where the file exists already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Replace it, atomically.
    Replace,
    /// Fail with [`io::ErrorKind::AlreadyExists`] and leave it alone.
    Refuse,
}

/// Writes `bytes` to `path`: temporary file in the same folder, fsync, rename, fsync of the folder.
/// A reader sees the old file, the new one, or none, never a part; so does the disk after a power cut.
pub fn write_atomic(path: &Path, bytes: &[u8], existing: Existing) -> io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".writing-");
    #[cfg(unix)]
    {
        // tempfile's own 0600 would outlive the rename; 0666 is narrowed by the umask as for any file.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    match existing {
        Existing::Replace => file.persist(path),
        Existing::Refuse => file.persist_noclobber(path),
    }
    .map_err(|error| error.error)?;
    sync_folder(folder)
}

/// Makes renames inside `folder` durable (a no-op where folders cannot be opened).
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { std::fs::File::open(folder)?.sync_all() } else { Ok(()) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_or_refuses_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.bin");
        write_atomic(&path, b"one", Existing::Refuse).unwrap();
        let refused = write_atomic(&path, b"two", Existing::Refuse).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        write_atomic(&path, b"two", Existing::Replace).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_atomic(&folder.path().join("no/where"), b"", Existing::Replace).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
