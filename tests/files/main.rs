//! Real commands and the files that they are given: what they leave of them, and what harm these can do.
#![cfg(unix)]

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

mod hostile;
mod outputs;

const PROGRAM: &str = env!("CARGO_BIN_EXE_secateur");

struct Done {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn command(folder: &Path, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(PROGRAM);
    command.current_dir(folder).args(words).stdin(Stdio::null());
    command
}

fn secateur(folder: &Path, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Done {
    let output = command(folder, words).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Done { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}
