//! A build of secateur as a program: which one it is, and one run of its `bench`.

use std::fs::{self, File, Metadata};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};

use super::super::interrupt::EXIT_INTERRUPTED;
use super::super::{Interrupted, RunFailed, at};
use crate::digest::sha256_of;
use crate::engine::StopFlag;
use crate::files::{if_there, limit, read};
use crate::measure::document::Document;

/// Between two looks at whether a run has ended; meanwhile this process sleeps and takes no time from it.
const LOOK: Duration = Duration::from_millis(20);

/// One file for the whole comparison: a build that replaces it is an error.
pub struct Executable {
    /// As typed.
    pub name: String,
    pub sha256: String,
    path: PathBuf,
    seen: (u64, Option<SystemTime>),
}

impl Executable {
    /// The file at a path.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        Self::named(path.display().to_string(), path)
    }

    /// The one that runs.
    pub fn this() -> anyhow::Result<Self> {
        Self::named("this executable".into(), &std::env::current_exe().context("this executable")?)
    }

    fn named(name: String, path: &Path) -> anyhow::Result<Self> {
        // With a folder in front no search through PATH can find another.
        let path = at(path, std::path::absolute(path))?;
        let seen = at(&path, fs::metadata(&path))?;
        if !seen.is_file() {
            bail!("{}: expected an executable file", path.display());
        }
        let sha256 = at(&path, File::open(&path).and_then(sha256_of))?;
        Ok(Self { name, sha256, path, seen: stamp(&seen) })
    }

    /// Runs `bench` with these arguments and returns what it measured. `folder` is one that nobody else writes to.
    pub fn bench(&self, arguments: &[String], folder: &Path, stop: &StopFlag) -> anyhow::Result<Document> {
        if stamp(&at(&self.path, fs::metadata(&self.path))?) != self.seen {
            bail!("{}: the file changed while it was measured; measure a copy of it", self.name);
        }
        let what = format!("{} bench {}", self.name, arguments[0]);
        let (json, messages) = (folder.join("run.json"), folder.join("messages"));
        let failed = |why: String, code| RunFailed { what: format!("{what}: {why}"), code };
        at(&json, if_there(fs::remove_file(&json)))?;
        let mut command = Command::new(&self.path);
        command.arg("bench").args(arguments).arg("--json").arg(&json);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(at(&messages, File::create(&messages))?);
        let spawned = command.spawn().map_err(|error| failed(format!("cannot be run: {error}"), 2))?;
        let status = Running(spawned).wait(stop)?;
        if status.code() == Some(EXIT_INTERRUPTED) {
            bail!(Interrupted(None));
        }
        if !status.success() {
            let said = at(&messages, read(&messages, limit::JSON))?;
            let said = String::from_utf8_lossy(&said).into_owned();
            let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
            // A check that failed there is none that failed here.
            let code = if status.code() == Some(3) { 3 } else { 2 };
            bail!(failed(format!("{status}: {}", last.trim_start_matches("error: ")), code));
        }
        let bytes = read(&json, limit::JSON).map_err(|_| failed("it wrote no measurement".into(), 2))?;
        Document::parse(&bytes).context(what)
    }
}

/// Size and time of the last change.
fn stamp(metadata: &Metadata) -> (u64, Option<SystemTime>) {
    (metadata.len(), metadata.modified().ok())
}

/// A process that ends with this value.
struct Running(Child);

impl Running {
    fn wait(mut self, stop: &StopFlag) -> anyhow::Result<ExitStatus> {
        loop {
            if stop.requested() {
                bail!(Interrupted(None));
            }
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail where it has ended already. It wrote to no place but ours.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
