//! Files: read up to a limit, written whole or not at all, in folders that are held.

mod folder;
mod lock;
mod outputs;
mod place;
mod read;

pub use folder::{Folder, How, UNFINISHED, is_unfinished};
pub use lock::Lock;
pub use outputs::{Files, Output, OutputError};
pub use place::{LOCK_SUFFIX, Place};
pub use read::{is_file, limit, open, read, read_text};

/// What was read, `None` where it is not there.
pub fn if_there<T>(read: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// A plain struct as indented JSON, ended by a line break.
pub fn json(value: &impl serde::Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("plain structs always serialise");
    bytes.push(b'\n');
    bytes
}

/// What to do where the file exists already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Replace it, atomically; its permissions and, where the system allows it, its owner stay.
    Replace,
    /// Fail with [`std::io::ErrorKind::AlreadyExists`] and leave it alone.
    Refuse,
}
