//! The program as a user runs it: a process of its own.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

/// Next to the folder of this executable; env!("CARGO_BIN_EXE_secateur") would name folders of the building machine in one that
/// travels (scripts/pack-gpu.sh).
pub static PROGRAM: LazyLock<String> = LazyLock::new(|| {
    let executable = std::env::current_exe().unwrap();
    executable.ancestors().nth(2).unwrap().join("secateur").to_str().unwrap().into()
});

/// What a command left: its exit code, stdout and stderr.
pub struct Done {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Done {
    pub fn parts(self) -> (Option<i32>, String, String) {
        (self.code, self.stdout, self.stderr)
    }
}

/// The program in `folder`, with an empty stdin.
pub fn command(folder: &Path, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(&*PROGRAM);
    command.current_dir(folder).args(words).stdin(Stdio::null());
    command
}

pub fn secateur(folder: &Path, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Done {
    command(folder, words).output().unwrap().into()
}
