//! The folder of a run: recipe, environment, metrics, checkpoints, results. It is never emptied.
//!
//! ```text
//! recipe.toml       every value resolved; the truth for --resume
//! environment.json  one entry a session: device, versions, command line, data
//! metrics.jsonl     one flat object an epoch
//! events.out.tfevents.*  the same for TensorBoard, where the recipe asks for it
//! checkpoints/      see the checkpoint module
//! selection/        epoch-NNNN.safetensors: the subset chosen at the start of that epoch (see prune::file)
//! best.safetensors  weights of the best epoch on the validation split
//! last.safetensors  weights of the last epoch
//! result.json       accuracies of both on the test split
//! .lock             empty; locked while a process trains
//! ```
//!
//! Checked by `tests/training.rs` and `tests/cli.rs`. Called by `secateur train`, read by `secateur eval`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::metrics::EpochMetrics;
use crate::files::{Existing, sync_folder, write_atomic};
use crate::prune::{Diagnosis, Subset};

/// A run's folder on disk.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

/// Why a run folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunFolderError {
    #[error("{path}: not empty; name another --out, or continue the run in it with --resume")]
    NotEmpty { path: PathBuf },
    #[error("{path}: not a run of secateur (it holds files, but no recipe.toml); name another --out")]
    NotARun { path: PathBuf },
    #[error("{path}: another process is training into it; wait until it has ended, or name another --out")]
    InUse { path: PathBuf },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: line {line}: {reason}")]
    Metrics { path: PathBuf, line: usize, reason: String },
    #[error("{path}: {reason}")]
    Environment { path: PathBuf, reason: String },
}

type Result<T> = std::result::Result<T, RunFolderError>;

fn at(path: &Path) -> impl FnOnce(io::Error) -> RunFolderError {
    let path = path.to_path_buf();
    |source| RunFolderError::Io { path, source }
}

const LOCK: &str = ".lock";

/// Whether a folder is not there or holds nothing but the lock of a run that ended before its first file.
fn is_empty(path: &Path) -> Result<bool> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        entries => entries.map_err(at(path))?,
    };
    for entry in entries {
        if entry.map_err(at(path))?.file_name() != LOCK {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What a folder is before a run starts in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not there, or empty.
    Fresh,
    /// Holds a run.
    Run,
}

impl RunFolder {
    /// Looks at `path` and changes nothing; refuses a folder with files of something else.
    pub fn state(path: &Path) -> Result<State> {
        if is_empty(path)? {
            Ok(State::Fresh)
        } else if path.join("recipe.toml").is_file() {
            Ok(State::Run)
        } else {
            Err(RunFolderError::NotARun { path: path.into() })
        }
    }

    /// Starts a run in `path`, which must be empty or absent.
    pub fn create(path: &Path) -> Result<Self> {
        if !is_empty(path)? {
            return Err(RunFolderError::NotEmpty { path: path.into() });
        }
        fs::create_dir_all(path).map_err(at(path))?;
        Ok(Self { path: path.into() })
    }

    /// Starts a run in the first free of `parent/name-1`, `parent/name-2`, ...
    pub fn create_numbered(parent: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(parent).map_err(at(parent))?;
        let mut number = 1;
        loop {
            let path = parent.join(format!("{name}-{number}"));
            // Creation itself is the test, so two runs started together get two folders.
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(at(&path)(error)),
            }
        }
    }

    /// The run already in `path`.
    pub fn open(path: &Path) -> Self {
        Self { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
    pub fn recipe(&self) -> PathBuf {
        self.path.join("recipe.toml")
    }
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Keeps the subset that was chosen for epoch `epoch`, counted from 1 as in the metrics.
    pub fn write_selection(&self, epoch: u32, subset: &Subset, diagnosis: &Diagnosis) -> Result<()> {
        let folder = self.path.join("selection");
        fs::create_dir_all(&folder).map_err(at(&folder))?;
        self.write(&format!("selection/epoch-{epoch:04}.safetensors"), &subset.to_bytes(diagnosis))
    }

    /// Writes a file of the run, whole or not at all.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        write_atomic(&path, bytes, Existing::Replace).map_err(at(&path))
    }

    /// Writes `value` as indented JSON.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(value).expect("plain structs always serialise");
        bytes.push(b'\n');
        self.write(name, &bytes)
    }

    /// The sessions in environment.json, the first one first; none where there is no such file.
    pub fn sessions(&self) -> Result<Vec<serde_json::Value>> {
        let path = self.path.join("environment.json");
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            bytes => serde_json::from_slice(&bytes.map_err(at(&path))?)
                .map_err(|error| RunFolderError::Environment { path, reason: error.to_string() }),
        }
    }

    /// Adds a session to environment.json: a run that was resumed has several.
    pub fn add_session(&self, session: serde_json::Value) -> Result<()> {
        let mut sessions = self.sessions()?;
        sessions.push(session);
        self.write_json("environment.json", &sessions)
    }

    /// Appends a line to metrics.jsonl and sees it onto the disk.
    pub fn append_metrics(&self, metrics: &EpochMetrics) -> Result<()> {
        let path = self.metrics();
        let mut line = serde_json::to_vec(metrics).expect("plain structs always serialise");
        line.push(b'\n');
        let append = || {
            let mut file = OpenOptions::new().append(true).create(true).open(&path)?;
            file.write_all(&line)?;
            file.sync_data()
        };
        append().map_err(at(&path))
    }

    /// Removes the lines after `epochs` epochs, and a last line cut short: a resumed run writes them again.
    pub fn roll_back_metrics(&self, epochs: u32) -> Result<()> {
        let path = self.metrics();
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            text => text.map_err(at(&path))?,
        };
        let mut keep = 0;
        for line in text.split_inclusive('\n') {
            match serde_json::from_str::<EpochMetrics>(line) {
                Ok(metrics) if line.ends_with('\n') && metrics.epoch <= epochs => keep += line.len(),
                _ => break,
            }
        }
        if keep < text.len() {
            let file = OpenOptions::new().write(true).open(&path).map_err(at(&path))?;
            file.set_len(keep as u64).and_then(|()| file.sync_all()).map_err(at(&path))?;
        }
        Ok(())
    }

    /// The lines of metrics.jsonl.
    pub fn read_metrics(&self) -> Result<Vec<EpochMetrics>> {
        let path = self.metrics();
        let text = fs::read_to_string(&path).map_err(at(&path))?;
        let parse = |(index, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|error| RunFolderError::Metrics {
                path: path.clone(),
                line: index + 1,
                reason: error.to_string(),
            })
        };
        text.lines().enumerate().map(parse).collect()
    }

    /// Claims the folder for this process as long as the result lives. Fails now, and not after an epoch, where the folder
    /// cannot be written to, and where another process has claimed it.
    pub fn claim(&self) -> Result<Claim> {
        let path = self.path.join(LOCK);
        let file = File::create(&path).map_err(at(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(RunFolderError::InUse { path: self.path.clone() }),
            Err(TryLockError::Error(error)) => return Err(at(&path)(error)),
        }
        sync_folder(&self.path).map_err(at(&self.path))?;
        Ok(Claim { _file: file })
    }
}

/// A run folder that only this process writes to; the system ends it with the process, however that ends.
#[derive(Debug)]
pub struct Claim {
    _file: File,
}
