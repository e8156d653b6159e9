//! Files and arguments made to harm: what they say does not reach the terminal as it is, and nothing is read or made without bound.

use std::fs;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use secateur::files::{Existing, Place};
use secateur::model::{ResNet, Weights, initialise};
use secateur::report::{Page, read_runs};
use tempfile::TempDir;

use crate::common::program::{Done, PROGRAM, secateur};

/// Moves the cursor, turns the text, rings, and is a control character of its own.
const HOSTILE: &str = "\u{1b}[2J\u{202e}evil\u{2066}\u{7}\u{9b}31m\u{200f}";

/// Nothing that a terminal acts on, and no line without end.
fn is_plain(what: &str, text: &str) {
    for line in text.lines() {
        assert!(line.chars().count() <= 4100, "{what}: a line of {} characters", line.chars().count());
        let bad = |c: &char| {
            c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        let bad = line.chars().find(bad);
        assert_eq!(bad, None, "{what}: {line:?}");
    }
}

fn refused(folder: &Path, words: &[&str], code: i32, part: &str) -> Done {
    let done = secateur(folder, words);
    let shown: Vec<String> = words.iter().map(|word| word.chars().take(60).collect()).collect();
    assert_eq!(done.code, Some(code), "{shown:?}: {}", done.stderr);
    assert_eq!(done.stderr.lines().count(), 1, "{shown:?}: {}", done.stderr);
    assert!(done.stderr.contains(part), "{shown:?}: {}", done.stderr);
    is_plain(&format!("{shown:?}"), &(done.stdout.clone() + &done.stderr));
    done
}

#[test]
fn text_of_others_reaches_the_terminal_plain_and_short() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let network = ResNet::resnet18(16, 10);
    let file = |name: &str, weights: &Weights| {
        Place::from(&path.join(name)).write(&weights.to_bytes(), Existing::Replace).unwrap();
    };
    let good = initialise(network, 0);
    file("good", &good);
    // A tensor with a name of orders to the terminal, and one of a megabyte.
    for (name, tensor) in
        [("orders", HOSTILE.to_string()), ("long", "x".repeat(1 << 20)), ("wordy", "x ".repeat(1 << 19))]
    {
        let mut weights = good.clone();
        weights.insert(tensor, &[1], vec![0.0]);
        file(name, &weights);
        refused(path, &["weights", "check", name], 1, "not a tensor of this network");
        refused(path, &["eval", "--weights", name], 2, "not a tensor of this network");
        refused(path, &["dump", "--weights", name, "--out", "d"], 2, "not a tensor of this network");
    }
    // Keys and values of a recipe.
    for (name, text) in [
        ("plain-key.toml", format!("{}=1\n", "k".repeat(100_000))),
        (
            "value.toml",
            format!("epochs = 1\nbatch = 1\n[objective]\nmethod = '''{}'''\n", "v".repeat(100_000)),
        ),
    ] {
        fs::write(path.join(name), text).unwrap();
        refused(path, &["recipes", name], 2, "recipe ");
    }
    let key: String = HOSTILE.chars().map(|c| format!("\\U{:08x}", c as u32)).collect();
    fs::write(path.join("key.toml"), format!("\"{key}\" = 1\nepochs = 1\nbatch = 1\n")).unwrap();
    refused(path, &["recipes", "key.toml"], 2, "recipe key");
    // Names in arguments and paths.
    refused(path, &["train", "--recipe", HOSTILE], 2, "no recipe");
    refused(path, &["train", "--set", &format!("{HOSTILE}=1")], 2, "");
    refused(path, &["eval", "--weights", HOSTILE], 2, "No such file");
    refused(path, &[&format!("x{HOSTILE}")], 2, "");
    refused(path, &["eval", "--weights", "good", "--protocol", HOSTILE], 2, "");
    fs::create_dir(path.join(HOSTILE)).unwrap();
    let out = format!("{HOSTILE}/w");
    let done = secateur(path, ["weights", "init", "--width", "16", "--out", &out]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    is_plain("weights init", &done.stdout);
    // Rows and kernels of a bench file, and a digest.
    let row = |name: &str| {
        serde_json::json!({
            "secateur_measure": 1, "kind": HOSTILE, "command": [], "build": HOSTILE, "started_unix_seconds": u64::MAX,
            "device": {"name": HOSTILE, "kind": HOSTILE, "code": HOSTILE}, "threads": 1, "recipes": [HOSTILE], "width": 16,
            "batch": 1, "ceiling_flops": null, "ceiling_bytes": null, "ceilings": [HOSTILE], "kernels": [],
            "rows": [{"name": name, "cache": "warm", "calls": 0, "samples": [1.0, 1.0], "median": 1.0, "quartiles": [1.0, 1.0],
                "noise": 0.1, "images": 1, "flops": 1.0, "bytes": 1.0, "ceiling_share": null, "bound": null, "unmet": HOSTILE}]
        })
    };
    for name in [HOSTILE.to_string(), "n".repeat(1 << 20)] {
        fs::write(path.join("b.json"), row(&name).to_string()).unwrap();
        let done = secateur(path, ["bench", "compare", "b.json", "b.json"]);
        is_plain("bench compare", &(done.stdout + &done.stderr));
        let kernels = serde_json::json!({"kernels": [{"name": name, "seconds": -1}]});
        fs::write(path.join("k.json"), kernels.to_string()).unwrap();
        fs::create_dir_all(path.join("run")).unwrap();
        fs::write(path.join("run/recipe.toml"), "").unwrap();
        refused(path, &["report", "run", "--kernels", "k.json"], 2, "seconds -1");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn reading_is_bounded() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    fs::create_dir(path.join("run")).unwrap();
    fs::write(path.join("run/recipe.toml"), "").unwrap();
    let device = "/dev/zero: a device, expected a file";
    refused(path, &["weights", "check", "/dev/zero"], 2, device);
    refused(path, &["eval", "--weights", "/dev/zero"], 2, device);
    refused(path, &["dump", "--weights", "/dev/zero", "--out", "d"], 2, device);
    refused(
        path,
        &["select", "--weights", "/dev/zero", "--method=random", "--fraction=0.5", "--out", "d"],
        2,
        device,
    );
    refused(path, &["train", "--recipe", "/dev/zero"], 2, device);
    let no_file = "/dev/zero: a pipe or a device, expected a file";
    refused(path, &["train", "--set=data.extra=['/dev/zero']"], 2, no_file);
    refused(path, &["bench", "compare", "/dev/zero", "/dev/zero"], 2, device);
    refused(path, &["report", "run", "--kernels", "/dev/zero"], 2, device);
    // As large as a disk, and no byte of it is read.
    let sparse = fs::File::create(path.join("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    refused(path, &["weights", "check", "sparse"], 2, "expected at most");
    refused(
        path,
        &["train", "--set=data.extra=['sparse']"],
        2,
        "sparse: Missing end of central directory; it is cut short",
    );
    refused(path, &["recipes", "sparse"], 2, "1099511627776 bytes, expected at most 1048576");
    // Files of a run that are devices: refused or left out, and said so.
    for name in ["metrics.jsonl", "environment.json", "result.json"] {
        std::os::unix::fs::symlink("/dev/zero", path.join("run").join(name)).unwrap();
    }
    let done = secateur(path, ["report", "run", "--images", "0"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(done.stderr.matches("a device, expected a file").count(), 3, "{}", done.stderr);
    // A pipe is read like a file.
    let words = "weights init --width 16 --dataset generated --out w";
    assert_eq!(secateur(path, words.split(' ')).code, Some(0));
    let piped = Command::new("bash")
        .current_dir(path)
        .args(["-c", "exec \"$0\" weights check <(cat w)", &PROGRAM])
        .output()
        .unwrap();
    assert!(piped.status.success(), "{}", String::from_utf8_lossy(&piped.stderr));
    let piped = Command::new("bash")
        .current_dir(path)
        .args(["-c", "exec \"$0\" recipes <(yes '# no end')", &PROGRAM])
        .output()
        .unwrap();
    let stderr = String::from_utf8(piped.stderr).unwrap();
    assert!(piped.status.code() == Some(2) && stderr.contains("more bytes, expected at most"), "{stderr}");
}

#[test]
fn arguments_are_bounded() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let deep = format!("{}=1", ["a"; 60_000].join("."));
    refused(path, &["train", "--set", &deep], 2, "the key has 60000 parts, expected at most 8");
    refused(path, &["recipes", "quick", "--set", &format!("a={{{deep}}}")], 2, "unknown key a");
    fs::write(path.join("deep.toml"), &deep).unwrap();
    refused(path, &["recipes", "deep.toml"], 2, "not TOML");
    let many = vec!["clean"; 20_000].join(",");
    let line = ["eval", "--weights", "w", "--protocol", &many];
    refused(path, &line, 2, "--protocol 20000 protocols, expected at most 100");
    refused(
        path,
        &["eval", "--weights", "w", "--protocol", "pgd2,clean,pgd2"],
        2,
        "--protocol pgd2: named twice (place 3)",
    );
    let twice = "evaluation.protocols=['clean','clean']";
    refused(path, &["train", "--out", "run", "--set", twice], 2, "evaluation.protocols");
    let speedup = ["bench", "speedup", "--recipes", "quick", "--dry-run", "--protocol", "aa,aa"];
    refused(path, &speedup, 2, "--protocol aa: named twice");
}

/// The address space holds the stacks of some of the threads.
#[test]
#[cfg(target_os = "linux")]
fn threads_that_cannot_be_started_are_an_error_of_ours() {
    let output = Command::new("sh")
        .args(["-c", "ulimit -v 1000000 && RAYON_NUM_THREADS=4096 exec \"$0\" recipes", &PROGRAM])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("error: the threads of the CPU cannot be started: "), "{stderr}");
}

/// Numbers as a damaged or malicious file has them.
fn number() -> impl Strategy<Value = f64> {
    let extreme = prop::sample::select(vec![
        5e-324,
        2.3e-308,
        1e-300,
        1.7e308,
        -1.7e308,
        1e308,
        -1e308,
        f64::MAX,
        f64::MIN,
        9.3e18,
        1.8e19,
        0.0,
        -0.0,
        1.0,
    ]);
    prop_oneof![extreme, any::<f64>().prop_filter("finite", |value| value.is_finite()), 0.0..1.0f64]
}

/// A page of one run with these epochs and this accuracy; it must be small, and no text of it may say NaN or infinity.
fn page(epochs: &[(u64, Vec<f64>)], accuracy: f64) {
    let folder = TempDir::new().unwrap();
    let fields = [
        "train_loss",
        "train_robust",
        "validation_robust",
        "validation_clean",
        "learning_rate",
        "subset_size",
        "attack_steps_per_sample",
        "residual",
        "co_pgd5_accuracy",
        "outlier_share",
        "boundary_share",
        "robust_share",
        "seconds_attack",
        "seconds_train",
        "seconds_select",
        "seconds_evaluate",
        "images",
    ];
    let line = |(epoch, values): &(u64, Vec<f64>)| {
        let mut line = serde_json::json!({ "epoch": epoch });
        for (field, value) in fields.iter().zip(values.iter().cycle()) {
            line[*field] = serde_json::json!(value);
        }
        format!("{line}\n")
    };
    fs::write(folder.path().join("recipe.toml"), "").unwrap();
    fs::write(folder.path().join("metrics.jsonl"), epochs.iter().map(line).collect::<String>()).unwrap();
    let row = |weights: &str| serde_json::json!({"weights": weights, "protocol": "pgd20", "accuracy": accuracy, "total": u64::MAX});
    let result = serde_json::json!({"best": {"epoch": u64::MAX}, "test": [row("best"), row("last")]});
    fs::write(folder.path().join("result.json"), result.to_string()).unwrap();
    let html = Page { runs: read_runs(&[folder.path().into()]).unwrap(), ..Page::default() }.html();
    assert!(html.len() < 2_000_000, "{} bytes", html.len());
    for word in html.split(|c: char| !c.is_alphanumeric()) {
        assert!(!matches!(word, "NaN" | "inf"), "the page says {word}: {epochs:?} {accuracy}");
    }
}

#[test]
fn a_page_of_the_numbers_that_broke_it() {
    for value in [5e-324, 1.7e308, 1e308, -1e308] {
        page(&[(1, vec![value])], value);
        page(&[(1, vec![value]), (2, vec![-value])], value);
        page(&[(1, vec![0.1]), (2, vec![value])], 0.5);
    }
    page(&[(1 << 63, vec![1.0])], 0.5);
    page(&[(1, vec![1.0]), (1 << 63, vec![2.0]), (u64::MAX, vec![3.0])], 0.5);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_page_of_any_numbers(
        epochs in prop::collection::btree_map(any::<u64>(), prop::collection::vec(number(), 1..18), 0..5),
        accuracy in number(),
    ) {
        page(&epochs.into_iter().collect::<Vec<_>>(), accuracy);
    }
}
