//! NVTX ranges as a tool hears them: the injection library of `tests/nvtx/injection.c`, compiled here, writes them to a file.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::common::program::PROGRAM;

/// Compiles the tool with the compiler that the build needs anyway.
fn injection(folder: &Path) -> PathBuf {
    let library = folder.join("libinjection.so");
    let compiler = std::env::var("CXX").unwrap_or("c++".into());
    let status = Command::new(compiler)
        .args(["-shared", "-fPIC", "-fpermissive", "-w", "-x", "c++", "tests/nvtx/injection.c", "-o"])
        .arg(&library)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap();
    assert!(status.success());
    library
}

/// A profile of a step of two attack steps; whether it went well.
fn step(folder: &Path, library: &Path, environment: &[(&str, &str)]) -> bool {
    Command::new(&*PROGRAM)
        .args(["profile", "--recipe=cifar10-pgd-at", "--width=16", "--batch=1", "--set=attack.steps=2"])
        .arg("--device=emulated")
        .current_dir(folder)
        .env("NVTX_INJECTION64_PATH", library)
        .env("NVTX_TEST_LOG", folder.join("ranges"))
        .envs(environment.iter().copied())
        .output()
        .unwrap()
        .status
        .success()
}

/// Ranges as paths, `step/attack/attack 1`, in the order in which they begin; checks that each is ended.
fn paths(log: &str) -> Vec<String> {
    let (mut open, mut paths) = (Vec::new(), Vec::new());
    for line in log.lines() {
        match line.strip_prefix("push ") {
            Some(name) => {
                open.push(name);
                paths.push(open.join("/"));
            }
            None => {
                assert_eq!(line, "pop");
                assert!(open.pop().is_some(), "a pop too many in\n{log}");
            }
        }
    }
    assert_eq!(open, Vec::<&str>::new(), "ranges left open");
    paths
}

#[test]
fn a_tool_hears_nested_ranges() {
    let folder = TempDir::new().unwrap();
    let library = injection(folder.path());
    assert!(step(folder.path(), &library, &[]));
    let paths = paths(&std::fs::read_to_string(folder.path().join("ranges")).unwrap());

    // The phases and the passes, the kernels left out.
    let kernel = |path: &&String| {
        let name = path.rsplit('/').next().unwrap();
        secateur::cuda::driver::Kernel::named(name).is_ok()
    };
    let parts: Vec<&str> = paths.iter().filter(|path| !kernel(path)).map(String::as_str).collect();
    let expected = [
        "step",
        "step/gather",
        "step/attack",
        "step/attack/attack 1",
        "step/attack/attack 1/forward",
        "step/attack/attack 1/backward",
        "step/attack/attack 2",
        "step/attack/attack 2/forward",
        "step/attack/attack 2/backward",
        "step/train",
        "step/train/forward",
        "step/train/backward",
        "step/optimizer",
    ];
    assert_eq!(parts, expected);
    // Each launch is a range of its own, where it belongs.
    for path in [
        "step/gather/gather_images",
        "step/attack/batch_norm_fold",
        "step/attack/attack 1/backward/head_ascent_cross_entropy",
        "step/attack/attack 1/backward/conv_image_sign_step_mma_128x16",
        "step/train/forward/batch_norm_statistics",
        "step/train/backward/head_weight_gradient",
        "step/optimizer/sgd_step",
    ] {
        assert!(paths.iter().any(|actual| actual == path), "no {path} in\n{}", paths.join("\n"));
    }
    // Outside of a step the program only loads weights.
    let outside: Vec<&String> = paths.iter().filter(|path| !path.starts_with("step")).collect();
    assert_eq!(outside, ["weights_to_bf16"]);
}

#[test]
fn a_tool_that_does_not_come_changes_nothing() {
    let folder = TempDir::new().unwrap();
    let library = injection(folder.path());
    // One that declines, one that is not there, one that is no library.
    assert!(step(folder.path(), &library, &[("NVTX_TEST_REFUSE", "1")]));
    assert!(step(folder.path(), &folder.path().join("missing.so"), &[]));
    std::fs::write(folder.path().join("text.so"), "no library").unwrap();
    assert!(step(folder.path(), &folder.path().join("text.so"), &[]));
    assert!(!folder.path().join("ranges").exists());
}
