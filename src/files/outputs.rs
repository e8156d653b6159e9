//! What a command reads and writes, declared before its work begins.
//!
//! Paths are resolved and compared, so that no output destroys an input, another output, or what is no file: a link is
//! followed and its target replaced, a device, a pipe or the standard output is written to.

use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{Existing, Place, if_there};

/// Links that lead from one to the next.
const MAX_LINKS: usize = 40;

/// Why an output is refused.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("{flag} {}: also the file of {other}; each needs a file of its own", path.display())]
    Same { flag: String, path: PathBuf, other: String },
    #[error("{flag} {}: one of the files of {other} {}; write it elsewhere", path.display(), folder.display())]
    Inside { flag: String, path: PathBuf, other: String, folder: PathBuf },
    #[error("{}: a folder, expected a file to write", path.display())]
    Folder { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The inputs and outputs of a command.
#[derive(Default)]
pub struct Files {
    inputs: Vec<Declared>,
    outputs: Vec<Declared>,
    folders: Vec<InputFolder>,
}

/// A file by its argument.
struct Declared {
    flag: String,
    path: PathBuf,
    file: Identity,
}

impl Declared {
    fn new(flag: &str, path: &Path) -> Self {
        Self { flag: flag.into(), path: path.into(), file: Identity::of(path) }
    }
}

/// A folder of which a command reads some files.
struct InputFolder {
    flag: String,
    path: PathBuf,
    whole: PathBuf,
    reads: fn(&Path) -> bool,
}

/// Tells whether two paths are one file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    /// Device and inode of what is there.
    inode: Option<(u64, u64)>,
    /// The real folder and the name in it.
    place: Option<PathBuf>,
}

impl Identity {
    fn of(path: &Path) -> Self {
        let inode = fs::metadata(path).ok().map(|is| (is.dev(), is.ino()));
        Self { inode, place: resolved(path).ok() }
    }

    fn is(&self, other: &Self) -> bool {
        let same = |a: &Option<_>, b: &Option<_>| a.is_some() && a == b;
        same(&self.inode, &other.inode) || (self.place.is_some() && self.place == other.place)
    }
}

/// The real folder of a file, which need not be there, and its name: links are followed.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match fs::read_link(&path) {
            Ok(target) => path = folder.join(target),
            Err(_) => {
                let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
                return Ok(folder.canonicalize()?.join(name));
            }
        }
    }
    Err(rustix::io::Errno::LOOP.into())
}

impl Files {
    /// Declares an input.
    pub fn reads(&mut self, flag: &str, path: &Path) -> Result<(), OutputError> {
        self.inputs.push(Declared::new(flag, path));
        self.outputs.iter().try_for_each(|output| self.check(output))
    }

    /// Declares a folder whose files, those that `reads` tells by their paths in it, are inputs.
    pub fn reads_folder(
        &mut self,
        flag: &str,
        path: &Path,
        reads: fn(&Path) -> bool,
    ) -> Result<(), OutputError> {
        if let Ok(whole) = path.canonicalize() {
            self.folders.push(InputFolder { flag: flag.into(), path: path.into(), whole, reads });
        }
        self.outputs.iter().try_for_each(|output| self.check(output))
    }

    /// Whether an output is no input.
    fn check(&self, output: &Declared) -> Result<(), OutputError> {
        if let Some(input) = self.inputs.iter().find(|input| input.file.is(&output.file)) {
            return Err(same(output, input));
        }
        for folder in &self.folders {
            let inside =
                output.file.place.as_deref().and_then(|place| place.strip_prefix(&folder.whole).ok());
            if inside.is_some_and(folder.reads) {
                return Err(OutputError::Inside {
                    flag: output.flag.clone(),
                    path: output.path.clone(),
                    other: folder.flag.clone(),
                    folder: folder.path.clone(),
                });
            }
        }
        Ok(())
    }

    /// Declares an output; fails where it is declared already, or cannot be written.
    pub fn writes(&mut self, flag: &str, path: &Path) -> Result<Output, OutputError> {
        let output = Declared::new(flag, path);
        let way = Way::to(path).map_err(|source| {
            let missing = source.kind() == io::ErrorKind::NotFound;
            let folder = path.parent().filter(|folder| missing && !folder.as_os_str().is_empty());
            OutputError::Io { path: folder.unwrap_or(path).into(), source }
        })?;
        if matches!(way, Way::Folder) {
            return Err(OutputError::Folder { path: path.into() });
        }
        // What is written to a device replaces nothing.
        if !matches!(way, Way::Device) {
            self.check(&output)?;
            if let Some(other) = self.outputs.iter().find(|other| other.file.is(&output.file)) {
                return Err(same(&output, other));
            }
            self.outputs.push(output);
        }
        Ok(Output { path: path.into(), way })
    }

    /// [`Files::writes`] where the argument is given.
    pub fn may_write(&mut self, flag: &str, path: Option<&PathBuf>) -> Result<Option<Output>, OutputError> {
        path.map(|path| self.writes(flag, path)).transpose()
    }
}

fn same(output: &Declared, other: &Declared) -> OutputError {
    OutputError::Same { flag: output.flag.clone(), path: output.path.clone(), other: other.flag.clone() }
}

/// A file that a command writes.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    way: Way,
}

/// How an output is written.
#[derive(Debug)]
enum Way {
    /// A regular file, there or not: replaced atomically, in a folder that is held.
    Replaced(Place),
    /// What this process has open as its standard output or error.
    Stdout,
    Stderr,
    /// A device that keeps nothing, such as /dev/null, or a terminal.
    Device,
    Pipe,
    /// Refused.
    Folder,
}

impl Way {
    fn to(path: &Path) -> io::Result<Self> {
        if let Some(is) = if_there(fs::metadata(path))? {
            // The fields of `Stat` have other types on other systems.
            #[allow(clippy::unnecessary_cast)]
            let open = |is: &Metadata, file: &dyn AsFd| {
                rustix::fs::fstat(file.as_fd())
                    .is_ok_and(|file| (file.st_dev as u64, file.st_ino as u64) == (is.dev(), is.ino()))
            };
            let kind = is.file_type();
            if kind.is_dir() {
                return Ok(Self::Folder);
            }
            // Of a terminal or /dev/null it does not matter who opened it.
            if !kind.is_char_device() && open(&is, &io::stdout()) {
                return Ok(Self::Stdout);
            }
            if !kind.is_char_device() && open(&is, &io::stderr()) {
                return Ok(Self::Stderr);
            }
            if !kind.is_file() {
                rustix::fs::access(path, rustix::fs::Access::WRITE_OK)?;
                return Ok(if kind.is_fifo() { Self::Pipe } else { Self::Device });
            }
        }
        // Where no link leads elsewhere, messages name the file as it was given.
        let place = if path.is_symlink() { resolved(path)? } else { path.into() };
        Ok(Self::Replaced(Place::from(&place).held_for_writing()?))
    }
}

impl Output {
    /// As it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, where it is one that is replaced.
    pub fn place(&self) -> Option<&Place> {
        match &self.way {
            Way::Replaced(place) => Some(place),
            _ => None,
        }
    }

    /// Writes all of it; a file is replaced as a whole.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.write_or(bytes, Existing::Replace)
    }

    /// Writes all of it, unless a file is there already.
    pub fn write_new(&self, bytes: &[u8]) -> io::Result<()> {
        self.write_or(bytes, Existing::Refuse)
    }

    fn write_or(&self, bytes: &[u8], existing: Existing) -> io::Result<()> {
        self.write_or_by(existing, |out| out.write_all(bytes))
    }

    /// [`Output::write`] of what `write` writes, for what is too large to hold.
    pub fn write_by<E: From<io::Error>>(
        &self,
        write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<(), E> {
        self.write_or_by(Existing::Replace, write)
    }

    fn write_or_by<E: From<io::Error>>(
        &self,
        existing: Existing,
        write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut stream: Box<dyn Write> = match &self.way {
            Way::Replaced(place) => return place.write_by(existing, |file| write(file)),
            Way::Stdout => Box::new(io::stdout()),
            Way::Stderr => Box::new(io::stderr()),
            Way::Device | Way::Pipe => Box::new(OpenOptions::new().write(true).open(&self.path)?),
            Way::Folder => return Err(io::Error::from(io::ErrorKind::IsADirectory).into()),
        };
        write(&mut *stream)?;
        Ok(stream.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn one_file_under_two_names_is_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("a"), "a").unwrap();
        fs::hard_link(at("a"), at("hard")).unwrap();
        symlink("a", at("soft")).unwrap();
        symlink("new", at("dangling")).unwrap();
        symlink(folder.path(), at("folder")).unwrap();
        let refused = |input: &str, output: &str| {
            let mut files = Files::default();
            files.reads("--in", &at(input)).unwrap();
            let first = files.writes("--out", &at(output)).is_err();
            let mut files = Files::default();
            files.writes("--out", &at(output)).unwrap();
            assert_eq!(first, files.reads("--in", &at(input)).is_err(), "{input} {output}");
            let mut files = Files::default();
            files.writes("--out", &at(input)).unwrap();
            assert_eq!(first, files.writes("--csv", &at(output)).is_err(), "{input} {output}");
            first
        };
        for (input, output) in [
            ("a", "a"),
            ("a", "hard"),
            ("a", "soft"),
            ("soft", "hard"),
            ("a", "folder/a"),
            ("new", "dangling"),
            ("folder/new", "new"),
        ] {
            assert!(refused(input, output), "{input} {output}");
        }
        assert!(!refused("a", "b"));
    }

    #[test]
    fn files_of_a_folder_are_inputs_and_others_in_it_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Files::default();
        files.reads_folder("--weights", folder.path(), |path| path.starts_with("checkpoints")).unwrap();
        fs::create_dir(folder.path().join("checkpoints")).unwrap();
        files.writes("--out", &folder.path().join("eval.json")).unwrap();
        let error = files.writes("--csv", &folder.path().join("checkpoints/x")).unwrap_err().to_string();
        assert!(error.starts_with("--csv ") && error.contains("one of the files of --weights"), "{error}");
    }

    #[test]
    fn a_link_is_followed_and_what_is_no_file_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("inside")).unwrap();
        symlink("inside/target", at("link")).unwrap();
        let mut files = Files::default();
        let link = files.writes("--out", &at("link")).unwrap();
        link.write(b"new").unwrap();
        assert!(at("link").is_symlink());
        assert_eq!(fs::read(at("inside/target")).unwrap(), b"new");
        for flag in ["--json", "--csv"] {
            // Not written to: for root, a fault here would destroy the device.
            assert!(matches!(files.writes(flag, Path::new("/dev/null")).unwrap().way, Way::Device));
        }
        let error = files.writes("--out", &at("inside")).unwrap_err().to_string();
        assert!(error.ends_with("inside: a folder, expected a file to write"), "{error}");
        assert!(files.writes("--out", &at("nowhere/file")).is_err());
    }
}
