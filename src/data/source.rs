//! Where the files of a set lie: in a folder, in the folder inside it that its archive unpacks to, or in the archive; each of
//! them of the binary or of the Python version.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Component, Path, PathBuf};

use flate2::read::GzDecoder;

use super::cifar::{self, Layout};
use super::{DataError, IMAGE_BYTES, Images, python};
use crate::files;

/// How the files of a set are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Binary,
    Python,
}

/// What a path leads to.
enum Source {
    Folder(Form, PathBuf),
    Archive(PathBuf),
}

/// The bytes of files by name.
pub type Files = HashMap<&'static str, Vec<u8>>;

/// Unpacked bytes of an archive that are looked at; the largest one has 190 MB.
const MAX_UNPACKED: u64 = 1 << 30;

impl Form {
    const ALL: [Self; 2] = [Self::Binary, Self::Python];

    /// The folder that the archive unpacks to.
    fn folder(self, layout: &Layout) -> &'static str {
        match self {
            Self::Binary => layout.folder,
            Self::Python => layout.python_folder,
        }
    }

    /// Every file with its number of records; that of the test images is the last.
    fn files(self, layout: &Layout) -> Vec<(&'static str, usize)> {
        let binary: Vec<_> = layout.files().collect();
        match self {
            Self::Binary => binary,
            // As many files of as many records.
            Self::Python => {
                layout.python_files.iter().zip(binary).map(|(&name, (_, records))| (name, records)).collect()
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Python => "Python",
        }
    }

    /// The most bytes that a whole file has.
    fn most_bytes(self, layout: &Layout, records: usize) -> u64 {
        let binary = (records * layout.record()) as u64;
        match self {
            Self::Binary => binary,
            // Names of the original images, some 40 bytes each; and pixels as UTF-8 in what Python 3 writes for protocol 2.
            Self::Python => 2 * binary + (1 << 20),
        }
    }

    /// Appends the first `count` images of a file's bytes.
    fn append(
        self,
        layout: &Layout,
        path: &Path,
        bytes: &[u8],
        (records, count): (usize, usize),
        images: &mut Images,
    ) -> Result<(), DataError> {
        match self {
            Self::Python => python::append(layout, path, bytes, records, count, images),
            Self::Binary => {
                cifar::check_size(layout, path, bytes.len() as u64, records)?;
                cifar::append(layout, path, &bytes[..count * layout.record()], images)
            }
        }
    }
}

/// Training and test images, the first so many where a limit is given; of whichever form is there, the binary one first.
pub fn read(
    layout: &Layout,
    path: &Path,
    train_limit: Option<usize>,
    test_limit: Option<usize>,
) -> Result<(Images, Images), DataError> {
    let limits = [train_limit, test_limit];
    match locate(layout, path)? {
        Source::Folder(form, folder) => {
            check_folder(layout, form, &folder)?;
            let load = |name: &str, most: u64| {
                let path = folder.join(name);
                files::read(&path, most).map_err(|source| DataError::Io { path, source })
            };
            images(layout, form, &folder, limits, load)
        }
        Source::Archive(file) => {
            let archive = File::open(&file).map_err(|source| DataError::Io { path: file.clone(), source })?;
            let (form, mut files) = from_archive(layout, &file, BufReader::new(archive))?;
            images(layout, form, &file, limits, |name, _| Ok(files.remove(name).unwrap_or_default()))
        }
    }
}

/// The folder with the files of the binary version; checks that all are there and have the right size.
pub fn find(layout: &Layout, folder: &Path) -> Result<PathBuf, DataError> {
    match locate(layout, folder)? {
        Source::Folder(Form::Binary, place) => check_folder(layout, Form::Binary, &place).map(|()| place),
        _ => Err(missing(layout, Form::Binary, folder, &|name| folder.join(name).is_file())),
    }
}

/// Refuses a folder in which a file is missing, or of the binary version has another size.
fn check_folder(layout: &Layout, form: Form, folder: &Path) -> Result<(), DataError> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        |source| DataError::Io { path, source }
    };
    let files =
        Vec::from_iter(form.files(layout).into_iter().map(|(name, records)| (folder.join(name), records)));
    for (path, _) in &files {
        // What cannot be looked at is not missing.
        if !files::is_file(path).map_err(io(path))? {
            return Err(missing(layout, form, folder, &|name| folder.join(name).is_file()));
        }
    }
    for (path, records) in files.iter().filter(|_| form == Form::Binary) {
        cifar::check_size(layout, path, path.metadata().map_err(io(path))?.len(), *records)?;
    }
    Ok(())
}

/// Images of the files that `load` gives by name; it is told the most bytes that one may have.
fn images(
    layout: &Layout,
    form: Form,
    place: &Path,
    limits: [Option<usize>; 2],
    mut load: impl FnMut(&str, u64) -> Result<Vec<u8>, DataError>,
) -> Result<(Images, Images), DataError> {
    let mut read = |files: &[(&'static str, usize)], limit: Option<usize>, all: usize| {
        let limit = limit.unwrap_or(all).min(all);
        let mut part = Images::default();
        part.pixels.reserve(limit * IMAGE_BYTES);
        for &(name, records) in files {
            let count = (limit - part.len()).min(records);
            let bytes = load(name, form.most_bytes(layout, records))?;
            form.append(layout, &place.join(name), &bytes, (records, count), &mut part)?;
        }
        Ok(part)
    };
    let (files, sizes) = (form.files(layout), layout.sizes());
    let (train, test) = files.split_at(files.len() - 1);
    Ok((read(train, limits[0], sizes.train)?, read(test, limits[1], sizes.test)?))
}

fn locate(layout: &Layout, path: &Path) -> Result<Source, DataError> {
    if path.is_file() {
        return match is_archive(path) {
            true => Ok(Source::Archive(path.into())),
            false => Err(one_file(layout, path)),
        };
    }
    if let Some(source) = inside(layout, path) {
        return Ok(source);
    }
    let other = layout.other();
    if inside(&other, path).is_some() {
        return Err(DataError::WrongSet { folder: path.into(), actual: other.kind, expected: layout.kind });
    }
    Err(missing(layout, Form::Binary, path, &|name| path.join(name).is_file()))
}

/// What of a set is in a folder: its files, the folder of an archive with any of them, or an archive.
fn inside(layout: &Layout, folder: &Path) -> Option<Source> {
    for form in Form::ALL {
        for place in [folder.to_path_buf(), folder.join(form.folder(layout))] {
            if form.files(layout).iter().any(|(name, _)| place.join(name).is_file()) {
                return Some(Source::Folder(form, place));
            }
        }
    }
    let archives = layout.archives.iter().map(|name| folder.join(name));
    archives.filter(|path| path.is_file()).map(Source::Archive).next()
}

/// Whether a file is a gzip archive, by its first bytes.
fn is_archive(path: &Path) -> bool {
    let mut start = [0; 2];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == [0x1f, 0x8b]
}

/// Why a file that is no archive is no data set.
fn one_file(layout: &Layout, path: &Path) -> DataError {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let of = |layout: &Layout| {
        let form =
            Form::ALL.into_iter().find(|form| form.files(layout).iter().any(|(file, _)| *file == name));
        form.map(|form| (form, layout.kind))
    };
    let what = match of(layout).or(of(&layout.other())) {
        Some((form, kind)) => format!("one file of the {} version of {kind}", form.name()),
        None => "neither a folder nor a gzip archive".into(),
    };
    DataError::OneFile { path: path.into(), what, set: layout.kind }
}

fn missing(layout: &Layout, form: Form, place: &Path, there: &dyn Fn(&str) -> bool) -> DataError {
    let files = form.files(layout);
    let missing = files.iter().filter(|(name, _)| !there(name)).map(|(name, _)| (*name).into()).collect();
    let hint = match place.exists() {
        true => "get them with `secateur data download`",
        false => "there is no such folder",
    };
    let files = files.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    DataError::Missing { folder: place.into(), missing, set: layout.kind, form: form.name(), files, hint }
}

/// The files of the set in the bytes of a gzipped tar archive; `path` stands in messages.
pub fn from_archive(layout: &Layout, path: &Path, archive: impl Read) -> Result<(Form, Files), DataError> {
    let io = |source| DataError::Io { path: path.into(), source };
    let other = layout.other();
    let mut found: [Files; 2] = Default::default();
    let mut of_other = false;
    let mut entries = tar::Archive::new(GzDecoder::new(archive).take(MAX_UNPACKED));
    for entry in entries.entries().map_err(io)? {
        let entry = entry.map_err(io)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        // "./folder/file" is "folder/file".
        let name = entry.path().map_err(io)?;
        let name: PathBuf = name.components().filter(|part| *part != Component::CurDir).collect();
        let is_of =
            |layout: &Layout, form: Form, file: &str| name == Path::new(form.folder(layout)).join(file);
        of_other |= Form::ALL
            .into_iter()
            .any(|form| form.files(&other).iter().any(|(file, _)| is_of(&other, form, file)));
        let known = Form::ALL.into_iter().find_map(|form| {
            let file = form.files(layout).into_iter().find(|(file, _)| is_of(layout, form, file))?;
            Some((form, file))
        });
        let Some((form, (file, records))) = known else { continue };
        // One byte more than belongs there: enough for the check of the size to see that there is too much.
        let mut bytes = Vec::new();
        entry.take(form.most_bytes(layout, records) + 1).read_to_end(&mut bytes).map_err(io)?;
        found[form as usize].insert(file, bytes);
    }
    if found.iter().all(HashMap::is_empty) && of_other {
        return Err(DataError::WrongSet { folder: path.into(), actual: other.kind, expected: layout.kind });
    }
    for form in Form::ALL {
        let files = &mut found[form as usize];
        if form.files(layout).iter().all(|(name, _)| files.contains_key(name)) {
            return Ok((form, std::mem::take(files)));
        }
    }
    let form = if found[0].len() >= found[1].len() { Form::Binary } else { Form::Python };
    Err(missing(layout, form, path, &|name| found[form as usize].contains_key(name)))
}
