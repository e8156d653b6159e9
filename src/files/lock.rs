//! A lock that only one process holds; the system ends it with the process, however that ends.

use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io::{self, Write};

use super::{Folder, How};
use crate::text::command_line;

/// Bytes of a lock file that are read: who holds it.
const HOLDER: u64 = 4096;

/// A lock file that this process holds.
#[derive(Debug)]
pub struct Lock {
    folder: Folder,
    name: OsString,
    /// Locked as long as it is open.
    _file: File,
    /// Whether the file goes with the lock.
    temporary: bool,
}

impl Lock {
    /// Locks the file, or fails with [`io::ErrorKind::ResourceBusy`] and says who holds it.
    pub(super) fn new(folder: Folder, name: &OsStr) -> io::Result<Self> {
        loop {
            let mut file = folder.file(name, How::Append)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let holder = folder.read(name, HOLDER).unwrap_or_default();
                    let holder = String::from_utf8_lossy(&holder).trim().to_string();
                    let by = if holder.is_empty() { "another process".into() } else { holder };
                    return Err(io::Error::new(io::ErrorKind::ResourceBusy, by));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // Whoever held it before may have removed the name since it was opened here.
            if folder.is_still(name, &file)? {
                file.set_len(0)?;
                let holder = format!("process {} ({})\n", std::process::id(), command_line().join(" "));
                file.write_all(&holder.as_bytes()[..holder.len().min(HOLDER as usize)])?;
                return Ok(Self { folder, name: name.into(), _file: file, temporary: false });
            }
        }
    }

    /// The file is removed at the end.
    pub fn temporary(mut self) -> Self {
        self.temporary = true;
        self
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.temporary {
            // While it is locked: another process would not find it again.
            let _ = self.folder.remove_file(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_and_the_other_hears_who() {
        let path = tempfile::tempdir().unwrap();
        let folder = Folder::from(path.path());
        let lock = folder.lock(".lock").unwrap();
        let error = folder.lock(".lock").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        assert!(error.to_string().starts_with(&format!("process {} (", std::process::id())), "{error}");
        drop(lock);
        drop(folder.lock(".lock").unwrap().temporary());
        assert_eq!(folder.names().unwrap().len(), 0);
        std::os::unix::fs::symlink("elsewhere", path.path().join(".lock")).unwrap();
        assert!(folder.lock(".lock").unwrap_err().to_string().starts_with("a symbolic link"));
        assert!(!path.path().join("elsewhere").exists());
    }
}
