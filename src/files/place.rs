//! A file in a folder.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::{Existing, Folder, How, Lock};

/// What the name of a place's lock ends in.
pub const LOCK_SUFFIX: &str = ".lock";

/// Where a file is or will be.
#[derive(Clone, Debug)]
pub struct Place {
    folder: Folder,
    name: OsString,
}

impl From<&Path> for Place {
    fn from(path: &Path) -> Self {
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::new(folder.into(), path.file_name().unwrap_or_default())
    }
}

impl From<&PathBuf> for Place {
    fn from(path: &PathBuf) -> Self {
        path.as_path().into()
    }
}

impl From<&Place> for Place {
    fn from(place: &Place) -> Self {
        place.clone()
    }
}

impl Place {
    pub fn new(folder: Folder, name: impl AsRef<OsStr>) -> Self {
        Self { folder, name: name.as_ref().into() }
    }

    /// The file next to it whose name has this suffix besides.
    pub fn with_suffix(&self, suffix: &str) -> Self {
        let mut name = self.name.clone();
        name.push(suffix);
        Self { folder: self.folder.clone(), name }
    }

    /// The same, its folder held by handle; fails where a file cannot be written there.
    pub(super) fn held_for_writing(self) -> io::Result<Self> {
        let folder = self.folder.hold()?;
        folder.probe()?;
        Ok(Self { folder, ..self })
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join(&self.name)
    }

    /// Whether a file is there.
    pub fn exists(&self) -> io::Result<bool> {
        self.folder.has(&self.name)
    }

    /// All its bytes, `most` at most.
    pub fn read(&self, most: u64) -> io::Result<Vec<u8>> {
        self.folder.read(&self.name, most)
    }

    /// Writes it, whole or not at all.
    pub fn write(&self, bytes: &[u8], existing: Existing) -> io::Result<()> {
        self.folder.write(&self.name, bytes, existing)
    }

    /// Writes what `write` writes, whole or not at all.
    pub fn write_by<E: From<io::Error>>(
        &self,
        existing: Existing,
        write: impl FnOnce(&mut File) -> Result<(), E>,
    ) -> Result<(), E> {
        self.folder.write_by(&self.name, existing, write)
    }

    pub fn open(&self, how: How) -> io::Result<File> {
        self.folder.file(&self.name, how)
    }

    pub fn remove(&self) -> io::Result<()> {
        self.folder.remove_file(&self.name)
    }

    /// Locks it against other processes, through a file of its own next to it, which goes with the lock.
    pub fn lock(&self) -> io::Result<Lock> {
        let lock = self.with_suffix(LOCK_SUFFIX);
        Ok(lock.folder.lock(&lock.name)?.temporary())
    }
}
