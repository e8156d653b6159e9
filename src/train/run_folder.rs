//! The folder of a run: recipe, environment, metrics, checkpoints, results. It is never emptied.
//!
//! ```text
//! recipe.toml       every value resolved; the truth for --resume
//! environment.json  one entry a session: device, versions, command line, data
//! metrics.jsonl     one flat object an epoch
//! *.damaged-N       a file of the run that was not whole, as it was found
//! events.out.tfevents.*  the same for TensorBoard, where the recipe asks for it
//! checkpoints/      see the checkpoint module
//! selection/        epoch-NNNN.safetensors: the subset chosen at the start of that epoch (see prune::file)
//! best.safetensors  weights of the best epoch on the validation split
//! last.safetensors  weights of the last epoch
//! result.json       accuracies of both on the test split
//! *.state           those that are known already, until all are
//! .lock             locked while a process trains, and says which
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::metrics::{self, EpochMetrics, Line, RolledBack};
use super::{checkpoint, tensorboard};
use crate::files::{
    self, Existing, Folder, Lock, Place, UNFINISHED, if_there, is_file, is_unfinished, limit,
};
use crate::prune::{Diagnosis, Subset};

/// A run's folder on disk.
#[derive(Clone, Debug)]
pub struct RunFolder {
    folder: Folder,
    /// Where this process has claimed the folder.
    _lock: Option<Arc<Lock>>,
}

/// Why a run folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunFolderError {
    #[error("{path}: not empty; name another --out, or continue the run in it with --resume")]
    NotEmpty { path: PathBuf },
    #[error("{path}: not a run of secateur (it holds files, but no recipe.toml); name another --out")]
    NotARun { path: PathBuf },
    #[error(
        "{path}: another process is training into it: {holder}; wait until it has ended, or name another --out"
    )]
    InUse { path: PathBuf, holder: String },
    #[error("{path}: a run of another recipe ({keys}); give the same --set and --epochs, or another --out")]
    OtherRecipe { path: PathBuf, keys: String },
    #[error(
        "{path}: the run was started on other images (SHA-256 {started_on}, now {now}); give the same --data"
    )]
    OtherImages { path: PathBuf, started_on: String, now: String },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: line {line}: {reason}")]
    Metrics { path: PathBuf, line: usize, reason: String },
    #[error("{path}: {reason}")]
    Environment { path: PathBuf, reason: String },
}

type Result<T> = std::result::Result<T, RunFolderError>;

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> RunFolderError {
    let path = path.to_path_buf();
    |source| RunFolderError::Io { path, source }
}

const LOCK: &str = ".lock";
pub(super) const METRICS: &str = "metrics.jsonl";
const ENVIRONMENT: &str = "environment.json";

/// Whether a path inside of a run's folder, or of a checkpoint's, is that of a file which the run keeps.
pub fn is_of_a_run(path: &Path) -> bool {
    const NAMES: [&str; 10] = [
        "recipe.toml",
        ENVIRONMENT,
        METRICS,
        "checkpoints",
        "selection",
        "judged",
        "best.safetensors",
        "last.safetensors",
        "result.json",
        LOCK,
    ];
    let is_checkpoint = path.file_name().is_some_and(checkpoint::is_file_name);
    NAMES.iter().any(|name| path.starts_with(name)) || is_checkpoint || tensorboard::is_event_file(path)
}

/// Whether a folder is not there or holds nothing but what a run leaves that ended before its first file: its lock, and that file
/// unfinished.
fn is_empty(path: &Path) -> Result<bool> {
    let Some(entries) = if_there(fs::read_dir(path)).map_err(at(path))? else { return Ok(true) };
    for entry in entries {
        let name = entry.map_err(at(path))?.file_name();
        if name != LOCK && !is_unfinished(&name) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// How far the run in a folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The folder is not there, or empty.
    Fresh,
    Unfinished,
    /// The results are there.
    Finished,
}

impl RunFolder {
    /// Looks at `path` and changes nothing; refuses a folder with files of something else.
    pub fn state(path: &Path) -> Result<State> {
        let has = |name: &str| is_file(&path.join(name)).map_err(at(&path.join(name)));
        if is_empty(path)? {
            Ok(State::Fresh)
        } else if !has("recipe.toml")? {
            Err(RunFolderError::NotARun { path: path.into() })
        } else if has("result.json")? && has("last.safetensors")? {
            Ok(State::Finished)
        } else {
            Ok(State::Unfinished)
        }
    }

    /// Starts a run in `path`, which must be empty or absent.
    pub fn create(path: &Path) -> Result<Self> {
        if !is_empty(path)? {
            return Err(RunFolderError::NotEmpty { path: path.into() });
        }
        fs::create_dir_all(path).map_err(at(path))?;
        Ok(Self::open(path))
    }

    /// Starts a run in the first free of `parent/name-1`, `parent/name-2`, ...
    pub fn create_numbered(parent: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(parent).map_err(at(parent))?;
        let mut number = 1;
        loop {
            let path = parent.join(format!("{name}-{number}"));
            // Creation itself is the test, so two runs started together get two folders.
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self::open(&path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(at(&path)(error)),
            }
        }
    }

    /// The run already in `path`.
    pub fn open(path: &Path) -> Self {
        Self { folder: path.into(), _lock: None }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
    pub fn recipe(&self) -> PathBuf {
        self.path().join("recipe.toml")
    }
    pub fn metrics(&self) -> PathBuf {
        self.path().join(METRICS)
    }
    pub fn checkpoints(&self) -> Folder {
        self.folder.folder("checkpoints")
    }
    /// The evaluations of `secateur bench speedup`.
    pub fn judged(&self) -> Folder {
        self.folder.folder("judged")
    }
    /// A file of the run.
    pub fn place(&self, name: &str) -> Place {
        Place::new(self.folder.clone(), name)
    }
    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Keeps the subset that was chosen for epoch `epoch`, counted from 1 as in the metrics.
    pub fn write_selection(&self, epoch: u32, subset: &Subset, diagnosis: &Diagnosis) -> Result<()> {
        let folder = self.folder.folder("selection");
        folder.create().map_err(at(folder.path()))?;
        let name = format!("epoch-{epoch:04}.safetensors");
        let written = folder.write(&name, &subset.to_bytes(diagnosis), Existing::Replace);
        written.map_err(at(&folder.path().join(name)))
    }

    /// Starts a run in this folder: writes its recipe, which no other process has written before.
    pub fn start(&self, recipe: &str) -> Result<()> {
        match self.folder.write("recipe.toml", recipe.as_bytes(), Existing::Refuse) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(RunFolderError::NotEmpty { path: self.path().into() })
            }
            written => written.map_err(at(&self.recipe())),
        }
    }

    /// All bytes of a file of the run.
    pub fn read(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        self.folder.read(name, most)
    }

    /// Writes a file of the run, whole or not at all.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.folder.write(name, bytes, Existing::Replace).map_err(at(&self.path().join(name)))
    }

    /// Writes `value` as indented JSON.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        self.write(name, &files::json(value))
    }

    /// The sessions in environment.json, the first one first; none where there is no such file.
    pub fn sessions(&self) -> Result<Vec<serde_json::Value>> {
        let path = self.path().join(ENVIRONMENT);
        let bytes = if_there(self.folder.read(ENVIRONMENT, limit::JSON)).map_err(at(&path))?;
        let Some(bytes) = bytes else { return Ok(Vec::new()) };
        serde_json::from_slice(&bytes)
            .map_err(|error| RunFolderError::Environment { path, reason: error.to_string() })
    }

    /// Adds a session to environment.json: a run that was resumed has several.
    pub fn add_session(&self, session: serde_json::Value) -> Result<()> {
        let mut sessions = self.sessions()?;
        sessions.push(session);
        self.write_json(ENVIRONMENT, &sessions)
    }

    /// Appends a line to metrics.jsonl and sees it onto the disk: all of it, or none where that fails.
    pub fn append_metrics(&self, metrics: &EpochMetrics) -> Result<()> {
        let mut line = serde_json::to_vec(metrics).expect("plain structs always serialise");
        line.push(b'\n');
        self.folder.append(METRICS, &line).map_err(at(&self.metrics()))
    }

    /// Removes the lines after `epochs` epochs: a resumed run writes them again. Where the file is damaged, keeps it under the
    /// name that is returned, and goes on with the lines that are whole.
    pub fn roll_back_metrics(&self, epochs: u32) -> Result<Option<PathBuf>> {
        let path = self.metrics();
        let bytes = if_there(self.folder.read(METRICS, limit::METRICS)).map_err(at(&path))?;
        let Some(bytes) = bytes else { return Ok(None) };
        let RolledBack { kept, damaged } = metrics::roll_back(&bytes, epochs);
        let aside = if damaged { Some(self.set_aside(METRICS, &bytes)?) } else { None };
        if kept != bytes {
            self.write(METRICS, &kept)?;
        }
        Ok(aside)
    }

    /// Keeps the content of a damaged file as `NAME.damaged-N`, the first that is free.
    pub fn set_aside(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let mut number = 1;
        loop {
            let name = format!("{name}.damaged-{number}");
            let path = self.path().join(&name);
            match self.folder.write(&name, bytes, Existing::Refuse) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                written => return written.map(|()| path.clone()).map_err(at(&path)),
            }
        }
    }

    /// The lines of metrics.jsonl.
    pub fn read_metrics(&self) -> Result<Vec<EpochMetrics>> {
        let path = self.metrics();
        let bytes = self.folder.read(METRICS, limit::METRICS).map_err(at(&path))?;
        let parse = |(index, line): (usize, Line)| {
            serde_json::from_slice(line.text()).map_err(|error| RunFolderError::Metrics {
                path: path.clone(),
                line: index + 1,
                reason: error.to_string(),
            })
        };
        metrics::lines(&bytes).enumerate().filter(|(_, line)| !line.text().is_empty()).map(parse).collect()
    }

    /// The folder, claimed for this process as long as the result lives and held by handle: moved while it is written to, it
    /// stays the same one. Fails now, and not after an epoch, where it cannot be written to, and where another process has
    /// claimed it.
    pub fn claim(&self) -> Result<Self> {
        let folder = self.folder.hold().map_err(at(self.path()))?;
        let lock = folder.lock(LOCK).map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => {
                RunFolderError::InUse { path: self.path().into(), holder: error.to_string() }
            }
            _ => at(&self.path().join(LOCK))(error),
        })?;
        // Nobody else writes here: what is unfinished stays so.
        for folder in [&folder, &folder.folder("selection")] {
            folder.remove_strays(UNFINISHED, Duration::ZERO);
        }
        folder.sync().map_err(at(self.path()))?;
        Ok(Self { folder, _lock: Some(Arc::new(lock)) })
    }
}
