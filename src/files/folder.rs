//! A folder, named by a path or held by handle, and what lies in it.
//!
//! The names in it are secateur's own, so no link is followed there: one that somebody put in the way is an error. A held folder
//! is the same one wherever it is moved, and another that takes its name is not touched.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, fchmod, fchown, fstat, linkat, mkdirat,
    openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;

use super::read::read_open;
use super::{Existing, Lock, if_there};
use crate::clock;

/// How the name of a file begins until it is whole.
pub const UNFINISHED: &str = ".writing-";

/// Whether a file of this name is one that somebody writes, or did not finish.
pub fn is_unfinished(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes())
}

/// A pipe under a fixed name is refused before it could be waited for.
const NO_PATIENCE: Duration = Duration::ZERO;

/// A folder.
#[derive(Clone, Debug)]
pub struct Folder {
    /// For messages: where it is, or was when it was held.
    path: PathBuf,
    root: Root,
    /// From the root down, each a folder and no link.
    inside: Vec<OsString>,
}

#[derive(Clone, Debug)]
enum Root {
    Path(PathBuf),
    Held(Arc<OwnedFd>),
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// To read; it is there.
    Read,
    /// To read, and to write after its end; made where it is absent.
    Append,
    /// To read and write; it is there.
    Update,
    /// To read and write; made, or emptied.
    Empty,
}

impl From<&Path> for Folder {
    fn from(path: &Path) -> Self {
        Self { path: path.into(), root: Root::Path(path.into()), inside: Vec::new() }
    }
}

impl From<&PathBuf> for Folder {
    fn from(path: &PathBuf) -> Self {
        path.as_path().into()
    }
}

impl From<&Folder> for Folder {
    fn from(folder: &Folder) -> Self {
        folder.clone()
    }
}

impl Folder {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder `name` in this one, whether it is there or not.
    pub fn folder(&self, name: impl AsRef<OsStr>) -> Self {
        let name = name.as_ref();
        let inside = self.inside.iter().cloned().chain([name.into()]).collect();
        Self { path: self.path.join(name), root: self.root.clone(), inside }
    }

    /// This folder, by handle: the same one wherever it is moved.
    pub fn hold(&self) -> io::Result<Self> {
        let root = Root::Held(Arc::new(self.open()?));
        Ok(Self { path: self.path.clone(), root, inside: Vec::new() })
    }

    fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut folder = match &self.root {
            Root::Held(handle) => handle.try_clone()?,
            Root::Path(path) if path.as_os_str().is_empty() => openat(CWD, ".", flags, Mode::empty())?,
            Root::Path(path) => openat(CWD, path, flags, Mode::empty())?,
        };
        for name in &self.inside {
            folder = openat(&folder, name, flags | OFlags::NOFOLLOW, Mode::empty())
                .map_err(|error| link_or(&folder, name, error))?;
        }
        Ok(folder)
    }

    /// Makes the folder, with those above it, unless it is there.
    pub fn create(&self) -> io::Result<()> {
        if let Root::Path(path) = &self.root {
            fs::create_dir_all(path)?;
        }
        for depth in 0..self.inside.len() {
            let above = Self { inside: self.inside[..depth].to_vec(), ..self.clone() }.open()?;
            match mkdirat(&above, &self.inside[depth], Mode::from_raw_mode(0o777)) {
                Err(error) if error != Errno::EXIST => return Err(error.into()),
                _ => {}
            }
        }
        self.open().map(drop)
    }

    /// What lies in the folder, in no order.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(self.open()?)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.into());
            }
        }
        Ok(names)
    }

    /// All bytes of a regular file, `most` at most.
    pub fn read(&self, name: impl AsRef<OsStr>, most: u64) -> io::Result<Vec<u8>> {
        let file = open_file(&self.open()?, name.as_ref(), OFlags::RDONLY)?;
        read_open(file, most, NO_PATIENCE)
    }

    /// Size of a regular file in bytes.
    pub fn size(&self, name: impl AsRef<OsStr>) -> io::Result<u64> {
        Ok(open_file(&self.open()?, name.as_ref(), OFlags::RDONLY)?.metadata()?.len())
    }

    /// Whether there is a folder of this name, and no link to one.
    pub fn has_folder(&self, name: impl AsRef<OsStr>) -> bool {
        self.stat(name.as_ref()).is_ok_and(|is| file_type(&is) == FileType::Directory)
    }

    /// Whether there is anything of this name. Where that cannot be told it is an error, and no "no".
    pub fn has(&self, name: impl AsRef<OsStr>) -> io::Result<bool> {
        Ok(if_there(self.stat(name.as_ref()))?.is_some())
    }

    fn stat(&self, name: &OsStr) -> io::Result<Stat> {
        Ok(statat(self.open()?, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Opens a regular file.
    pub fn file(&self, name: impl AsRef<OsStr>, how: How) -> io::Result<File> {
        let flags = match how {
            How::Read => OFlags::RDONLY,
            How::Append => OFlags::RDWR | OFlags::CREATE | OFlags::APPEND,
            How::Update => OFlags::RDWR,
            How::Empty => OFlags::RDWR | OFlags::CREATE,
        };
        let file = open_file(&self.open()?, name.as_ref(), flags)?;
        if how == How::Empty {
            file.set_len(0)?;
        }
        Ok(file)
    }

    /// Writes a file: under a temporary name, fsync, rename, fsync of the folder. A reader sees the old file, the new one, or
    /// none, never a part; so does the disk after a power cut.
    pub fn write(&self, name: impl AsRef<OsStr>, bytes: &[u8], existing: Existing) -> io::Result<()> {
        self.write_by(name, existing, |file| file.write_all(bytes))
    }

    /// [`Folder::write`] of what `write` writes; where it fails, nothing stays.
    pub fn write_by<E: From<io::Error>>(
        &self,
        name: impl AsRef<OsStr>,
        existing: Existing,
        write: impl FnOnce(&mut File) -> Result<(), E>,
    ) -> Result<(), E> {
        let (name, folder) = (name.as_ref(), self.open()?);
        let mut unfinished = Unfinished::create(&folder)?;
        if let Ok(before) = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)
            && file_type(&before) == FileType::RegularFile
        {
            if existing == Existing::Refuse {
                return Err(io::Error::from(Errno::EXIST).into());
            }
            unfinished.take_after(&before)?;
        }
        write(&mut unfinished.file)?;
        unfinished.file.sync_all()?;
        let named = match existing {
            Existing::Replace => renameat(&folder, &unfinished.name, &folder, name),
            Existing::Refuse => linkat(&folder, &unfinished.name, &folder, name, AtFlags::empty()),
        };
        named.map_err(io::Error::from)?;
        drop(unfinished);
        Ok(rustix::fs::fsync(&folder).map_err(io::Error::from)?)
    }

    /// Adds to the end of a file and sees it onto the disk: all of `bytes`, or none where that fails.
    pub fn append(&self, name: impl AsRef<OsStr>, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.file(name, How::Append)?;
        let before = file.metadata()?.len();
        file.write_all(bytes).inspect_err(|_| {
            // A full disk takes a part of it. The first error is the one to report.
            let _ = file.set_len(before);
        })?;
        file.sync_data()
    }

    /// Fails where a file cannot be written. Removes what writers left that were killed: no file takes a day to write.
    pub fn probe(&self) -> io::Result<()> {
        self.remove_strays(UNFINISHED, Duration::from_secs(24 * 3600));
        Unfinished::create(&self.open()?).map(drop)
    }

    pub fn rename(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> io::Result<()> {
        let folder = self.open()?;
        Ok(renameat(&folder, from.as_ref(), &folder, to.as_ref())?)
    }

    pub fn remove_file(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(unlinkat(self.open()?, name.as_ref(), AtFlags::empty())?)
    }

    /// Removes what bears this name, with all that lies in it.
    pub fn remove(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        let name = name.as_ref();
        if file_type(&self.stat(name)?) != FileType::Directory {
            return self.remove_file(name);
        }
        let folder = self.folder(name);
        folder.names()?.iter().try_for_each(|name| folder.remove(name))?;
        Ok(unlinkat(self.open()?, name, AtFlags::REMOVEDIR)?)
    }

    /// Removes what starts with `prefix` and has not changed for `age`: what a process that was killed left. The age is beyond that
    /// of any that still lives. What cannot be removed stays.
    pub fn remove_strays(&self, prefix: &str, age: Duration) {
        let names = self.names().unwrap_or_default();
        for name in names.iter().filter(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes())) {
            let changed = self.stat(name).ok().and_then(|is| u64::try_from(is.st_mtime).ok());
            if changed.is_some_and(|changed| Duration::from_secs(changed) + age <= clock::now()) {
                let _ = self.remove(name);
            }
        }
    }

    /// Makes renames inside the folder durable.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.open()?)?)
    }

    /// Locks the file `name`, which is made for it, against other processes.
    pub fn lock(&self, name: impl AsRef<OsStr>) -> io::Result<Lock> {
        Lock::new(self.hold()?, name.as_ref())
    }

    /// Whether `file` is what bears this name.
    pub(super) fn is_still(&self, name: &OsStr, file: &File) -> io::Result<bool> {
        let (there, here) = (self.stat(name), fstat(file)?);
        Ok(there.is_ok_and(|there| (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)))
    }
}

/// Opens a regular file for reading or writing, and follows no link.
fn open_file(folder: &OwnedFd, name: &OsStr, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = openat(folder, name, flags, Mode::from_raw_mode(0o666))
        .map_err(|error| link_or(folder, name, error))?;
    match file_type(&fstat(&file)?) {
        FileType::RegularFile => Ok(file.into()),
        FileType::Directory => Err(io::Error::new(io::ErrorKind::InvalidInput, "a folder, expected a file")),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "a pipe or a device, expected a file")),
    }
}

/// `error`, or that a link is in the way.
fn link_or(folder: &OwnedFd, name: &OsStr, error: Errno) -> io::Error {
    let is = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
    match is.is_ok_and(|is| file_type(&is) == FileType::Symlink) {
        // What it points to may be whole: no damage, as a folder in its place would be.
        true => io::Error::new(
            io::ErrorKind::Unsupported,
            "a symbolic link, and secateur follows none under a name of its own; replace it by what it points to",
        ),
        false => error.into(),
    }
}

fn file_type(is: &Stat) -> FileType {
    FileType::from_raw_mode(is.st_mode)
}

/// A file under a temporary name, which goes unless it is renamed.
struct Unfinished<'a> {
    folder: &'a OwnedFd,
    name: String,
    file: File,
}

impl<'a> Unfinished<'a> {
    fn create(folder: &'a OwnedFd) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            let name =
                format!("{UNFINISHED}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            // The umask narrows these permissions, as for any file.
            match openat(folder, &name, flags, Mode::from_raw_mode(0o666)) {
                Ok(file) => return Ok(Self { folder, name, file: file.into() }),
                // Left by a process of the same number that was killed.
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes the permissions of the file that it will replace and, where the system allows it, the owner.
    fn take_after(&self, before: &Stat) -> io::Result<()> {
        let is = fstat(&self.file)?;
        if (is.st_uid, is.st_gid) != (before.st_uid, before.st_gid) {
            // Only root can give a file away.
            let _ =
                fchown(&self.file, Some(Uid::from_raw(before.st_uid)), Some(Gid::from_raw(before.st_gid)));
        }
        Ok(fchmod(&self.file, Mode::from_raw_mode(before.st_mode))?)
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        // Fails where it was renamed.
        let _ = unlinkat(self.folder, &self.name, AtFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_file_is_replaced_or_left_and_nothing_else_stays() {
        let path = tempfile::tempdir().unwrap();
        let folder = Folder::from(path.path());
        folder.write("weights", b"one", Existing::Refuse).unwrap();
        let refused = folder.write("weights", b"two", Existing::Refuse).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(folder.read("weights", 9).unwrap(), b"one");
        let file = path.path().join("weights");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        folder.write("weights", b"two", Existing::Replace).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"two");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(folder.names().unwrap(), ["weights"]);
        let error = folder.folder("no").write("where", b"", Existing::Replace).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn only_old_strays_go() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let old = std::time::SystemTime::now() - Duration::from_secs(48 * 3600);
        for name in [".writing-old", ".writing-new", "written"] {
            let file = File::create(at(name)).unwrap();
            if name != ".writing-new" {
                file.set_modified(old).unwrap();
            }
        }
        fs::create_dir_all(at(".unpacking-old/inside")).unwrap();
        File::open(at(".unpacking-old")).unwrap().set_modified(old).unwrap();
        let held = Folder::from(folder.path());
        held.probe().unwrap();
        let there = |name: &str| at(name).exists();
        assert_eq!([".writing-old", ".writing-new", "written"].map(there), [false, true, true]);
        held.remove_strays(".unpacking-", Duration::from_secs(3600));
        assert_eq!([".unpacking-old", ".writing-new"].map(there), [false, true]);
        Folder::from(&at("nowhere")).remove_strays("", Duration::ZERO);
    }

    #[test]
    fn no_link_is_followed() {
        let path = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let victim = outside.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, path.path().join("file")).unwrap();
        symlink(outside.path(), path.path().join("folder")).unwrap();
        let folder = Folder::from(path.path());
        for how in [How::Read, How::Append, How::Update, How::Empty] {
            let error = folder.file("file", how).unwrap_err().to_string();
            assert!(error.starts_with("a symbolic link"), "{how:?}: {error}");
        }
        assert!(folder.read("file", 99).unwrap_err().to_string().starts_with("a symbolic link"));
        let inside = folder.folder("folder");
        assert!(inside.names().unwrap_err().to_string().starts_with("a symbolic link"));
        assert!(inside.create().unwrap_err().to_string().starts_with("a symbolic link"));
        assert!(inside.write("new", b"", Existing::Replace).is_err());
        // A link itself is replaced or removed, and never what it points to.
        folder.write("file", b"new", Existing::Replace).unwrap();
        folder.remove("folder").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
        assert_eq!(folder.names().unwrap(), ["file"]);
    }

    #[test]
    fn a_held_folder_is_the_same_wherever_it_is_moved() {
        let path = tempfile::tempdir().unwrap();
        let (here, there) = (path.path().join("here"), path.path().join("there"));
        fs::create_dir(&here).unwrap();
        let held = Folder::from(&here).hold().unwrap();
        fs::rename(&here, &there).unwrap();
        fs::create_dir(&here).unwrap();
        held.folder("inside").create().unwrap();
        held.folder("inside").write("file", b"1", Existing::Replace).unwrap();
        held.file("log", How::Append).unwrap().write_all(b"2").unwrap();
        assert_eq!(fs::read(there.join("inside/file")).unwrap(), b"1");
        assert_eq!(fs::read(there.join("log")).unwrap(), b"2");
        assert_eq!(fs::read_dir(&here).unwrap().count(), 0);
        held.remove("inside").unwrap();
        assert!(!there.join("inside").exists());
    }
}
