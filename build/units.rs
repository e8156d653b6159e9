//! Finding the sources, and compiling one unit to one file when that is needed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;
use std::{fs, thread};

/// C++ and CUDA C++ sources.
pub struct Sources {
    /// One operation a file, for GPU and host.
    pub kernels: Vec<PathBuf>,
    /// The emulator, for the host only.
    pub host: Vec<PathBuf>,
}

/// The sources under `folder`, but for those under `left_out`.
pub fn find(folder: &Path, left_out: Option<&Path>) -> Result<Sources, String> {
    let mut sources = Sources { kernels: Vec::new(), host: Vec::new() };
    walk(folder, &mut |path| match path.extension().and_then(|e| e.to_str()) {
        _ if left_out.is_some_and(|left_out| path.starts_with(left_out)) => {}
        Some("cu") => sources.kernels.push(path),
        Some("cpp") => sources.host.push(path),
        _ => {}
    })?;
    sources.kernels.sort();
    sources.host.sort();
    Ok(sources)
}

fn walk(folder: &Path, visit: &mut impl FnMut(PathBuf)) -> Result<(), String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    for entry in entries {
        let path = entry.map_err(|e| format!("{}: {e}", folder.display()))?.path();
        if path.is_dir() { walk(&path, visit)? } else { visit(path) }
    }
    Ok(())
}

/// One call of a compiler. It is asked for a list of the files it read (`-MMD`), from which later builds know whether to
/// call it again.
pub struct Unit {
    pub command: Command,
    pub output: PathBuf,
    /// What it compiles, for messages.
    pub name: String,
}

/// What the compiler had to say, the same whether it ran now or in an earlier build.
pub struct Compiled {
    pub output: PathBuf,
    pub log: String,
}

/// Compiles all units on all cores; the error holds what the compiler said of every unit that failed.
pub fn compile(units: Vec<Unit>) -> Result<Vec<Compiled>, String> {
    let threads = thread::available_parallelism().map_or(1, |n| n.get()).min(units.len().max(1));
    let next = AtomicUsize::new(0);
    let mut results: Vec<(usize, Result<Compiled, String>)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut done = Vec::new();
                    while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let index = units.iter().position(|u| std::ptr::eq(u, unit)).unwrap_or(0);
                        done.push((index, compile_one(unit)));
                    }
                    done
                })
            })
            .collect();
        workers.into_iter().flat_map(|w| w.join().unwrap_or_default()).collect()
    });
    results.sort_by_key(|(index, _)| *index);
    let failures: Vec<&str> =
        results.iter().filter_map(|(_, r)| r.as_ref().err().map(String::as_str)).collect();
    if !failures.is_empty() {
        return Err(failures.join("\n"));
    }
    Ok(results.into_iter().filter_map(|(_, r)| r.ok()).collect())
}

fn compile_one(unit: &Unit) -> Result<Compiled, String> {
    let beside = |extension: &str| unit.output.with_suffix(extension);
    let (call, depends, log) = (beside("call"), beside("d"), beside("log"));
    let described = described(&unit.command);
    let fresh = fs::read_to_string(&call).is_ok_and(|c| c == described) && is_fresh(&unit.output, &depends);
    if !fresh {
        let _ = fs::remove_file(&call);
        let mut command = Command::new(unit.command.get_program());
        command.args(unit.command.get_args());
        for (key, value) in unit.command.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        command.args(["-MMD", "-MF"]).arg(&depends);
        let output = command
            .output()
            .map_err(|e| format!("{}: {} does not start: {e}", unit.name, command.get_program().display()))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        if !output.status.success() {
            return Err(format!("{}: does not compile\n{said}", unit.name));
        }
        let write =
            |path: &Path, text: &str| fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()));
        write(&log, &said)?;
        write(&call, &described)?;
    }
    let log = fs::read_to_string(&log).unwrap_or_default();
    Ok(Compiled { output: unit.output.clone(), log })
}

/// What decides the output besides the sources: program and arguments, quoted. The environment stays out, since it differs from
/// shell to shell; what of it the compiler crate reads (`CXX`, `CXXFLAGS`) is in the arguments.
fn described(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("{word:?}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether `output` is newer than every file that the dependency list names.
fn is_fresh(output: &Path, depends: &Path) -> bool {
    let modified = |path: &Path| -> Option<SystemTime> { fs::metadata(path).ok()?.modified().ok() };
    let (Some(made), Ok(list)) = (modified(output), fs::read_to_string(depends)) else { return false };
    let Some((_, files)) = list.split_once(": ") else { return false };
    files
        .replace("\\\n", " ")
        .split_whitespace()
        .all(|file| modified(Path::new(file)).is_some_and(|changed| changed <= made))
}

/// Adds to a file's name; `Path::with_added_extension` is younger than our oldest compiler.
trait WithSuffix {
    fn with_suffix(&self, extension: &str) -> PathBuf;
}

impl WithSuffix for PathBuf {
    fn with_suffix(&self, extension: &str) -> PathBuf {
        let mut name = self.clone().into_os_string();
        name.push(".");
        name.push(extension);
        name.into()
    }
}
