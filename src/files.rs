//! Whole files or none: every file a run leaves behind is written under a temporary name and renamed.
//!
//! Checked by its own tests. Called by weights files, checkpoints, recipes and the data download.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// What to do where the file exists already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Replace it, atomically.
    Replace,
    /// Fail with [`io::ErrorKind::AlreadyExists`] and leave it alone.
    Refuse,
}

/// How the name of a file begins until it is whole.
pub const TEMPORARY: &str = ".writing-";

/// Whether a file of this name is one that somebody writes, or did not finish.
pub fn is_temporary(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes())
}

/// Removes from `folder` what starts with `prefix` and has not changed for `age`: what a process that was killed left. The age is
/// beyond that of any that still lives. What cannot be removed stays.
pub fn remove_strays(folder: &Path, prefix: &str, age: Duration) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
            continue;
        }
        // Of a link, its own.
        let Ok(metadata) = entry.metadata() else { continue };
        let old = metadata.modified().ok().and_then(|time| time.elapsed().ok()).is_some_and(|old| old >= age);
        let _ = match (old, metadata.is_dir()) {
            (false, _) => Ok(()),
            (true, true) => std::fs::remove_dir_all(entry.path()),
            (true, false) => std::fs::remove_file(entry.path()),
        };
    }
}

/// [`remove_strays`] of [`write_atomic`]: no file takes a day to write.
pub fn remove_unfinished(folder: &Path) {
    remove_strays(folder, TEMPORARY, Duration::from_secs(24 * 3600));
}

/// Writes `bytes` to `path`: temporary file in the same folder, fsync, rename, fsync of the folder.
/// A reader sees the old file, the new one, or none, never a part; so does the disk after a power cut.
pub fn write_atomic(path: &Path, bytes: &[u8], existing: Existing) -> io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY);
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
    fn only_old_strays_go() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let old = std::time::SystemTime::now() - Duration::from_secs(48 * 3600);
        for name in [".writing-old", ".writing-new", "written"] {
            let file = std::fs::File::create(at(name)).unwrap();
            if name != ".writing-new" {
                file.set_modified(old).unwrap();
            }
        }
        std::fs::create_dir_all(at(".unpacking-old/inside")).unwrap();
        std::fs::File::open(at(".unpacking-old")).unwrap().set_modified(old).unwrap();
        remove_unfinished(folder.path());
        let there = |name: &str| at(name).exists();
        assert_eq!([".writing-old", ".writing-new", "written"].map(there), [false, true, true]);
        remove_strays(folder.path(), ".unpacking-", Duration::from_secs(3600));
        assert_eq!([".unpacking-old", ".writing-new"].map(there), [false, true]);
        remove_unfinished(&at("nowhere"));
    }

    #[test]
    fn a_missing_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_atomic(&folder.path().join("no/where"), b"", Existing::Replace).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
