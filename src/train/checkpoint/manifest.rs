//! A folder of files under a manifest that holds the size and the SHA-256 of each: written to disk whole, read only whole.
//!
//! What the files say is the checkpoint's.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::{CheckpointError, at};
use crate::digest::sha256;
use crate::files::{Folder, How, limit};

const FORMAT: u32 = 1;
pub const MANIFEST: &str = "manifest.json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    files: BTreeMap<String, FileEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEntry {
    bytes: u64,
    sha256: String,
}

impl FileEntry {
    fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, sha256: sha256(bytes) }
    }
}

/// A folder being written, one file after the other.
pub struct Writer {
    folder: Folder,
    manifest: Manifest,
}

impl Writer {
    /// Makes the folder, which is not there yet.
    pub fn create(folder: Folder) -> Result<Self, CheckpointError> {
        folder.create().map_err(at(folder.path()))?;
        Ok(Self { folder, manifest: Manifest { format: FORMAT, files: BTreeMap::new() } })
    }

    /// Writes a file, to be found in the manifest.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.manifest.files.insert(name.into(), FileEntry::of(bytes));
        write_synced(&self.folder, name, bytes)
    }

    /// Writes the manifest; the folder is on disk then, under the name it has.
    pub fn finish(self) -> Result<(), CheckpointError> {
        write_synced(&self.folder, MANIFEST, &json(&self.manifest))?;
        self.folder.sync().map_err(at(self.folder.path()))
    }
}

/// Indented JSON of one of a checkpoint's structs.
pub fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("plain structs always serialise")
}

fn write_synced(folder: &Folder, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
    let write = || {
        let mut file = folder.file(name, How::Empty)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(at(&folder.path().join(name)))
}

/// The files that the manifest lists, each of them one of `known` and checked against it.
pub fn read<'a>(folder: &Folder, known: &[&'a str]) -> Result<BTreeMap<&'a str, Vec<u8>>, CheckpointError> {
    let path = |name: &str| folder.path().join(name);
    let damaged = |name: &str, reason: String| CheckpointError::Damaged { path: path(name), reason };
    // What is not there, or is no file of a checkpoint, is damage; what cannot be read may be whole.
    let failed = |name: &str| {
        let path = path(name);
        move |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::FileTooLarge => CheckpointError::Damaged { path, reason: source.to_string() },
            _ => CheckpointError::Io { path, source },
        }
    };
    let length = |name: &str| folder.size(name).map_err(failed(name));
    let read = |name: &str, most| folder.read(name, most).map_err(failed(name));

    let manifest: Manifest = serde_json::from_slice(&read(MANIFEST, limit::SETTINGS)?)
        .map_err(|error| damaged(MANIFEST, error.to_string()))?;
    if manifest.format != FORMAT {
        return Err(damaged(MANIFEST, format!("format {}, expected {FORMAT}", manifest.format)));
    }
    let mut files = BTreeMap::new();
    for (name, entry) in &manifest.files {
        // Only known names are opened: a manifest cannot point outside its folder.
        let Some(&name) = known.iter().find(|known| *known == name) else {
            return Err(damaged(MANIFEST, format!("lists '{name}', which is no file of a checkpoint")));
        };
        // The size is compared before the bytes are read, so a wrong file costs no memory.
        let actual = length(name)?;
        if actual != entry.bytes {
            return Err(damaged(name, format!("{actual} bytes, expected {}", entry.bytes)));
        }
        let bytes = read(name, limit::TENSORS)?;
        let actual = sha256(&bytes);
        if actual != entry.sha256 {
            return Err(damaged(name, format!("SHA-256 {actual}, expected {}", entry.sha256)));
        }
        files.insert(name, bytes);
    }
    Ok(files)
}
