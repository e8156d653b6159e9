//! Extra images and corrupted ones as a user has them: made, labelled, trained on, evaluated on.

use std::fs;
use std::path::Path;
use std::process::Command;

use secateur::data::extra::ExtraImages;
use secateur::data::pixel_order::to_pixels;
use tempfile::TempDir;

use crate::common::npz::{self, array, images};
use crate::common::program::{Done, PROGRAM, secateur};

fn line(folder: &Path, line: &str) -> Done {
    secateur(folder, line.split_whitespace())
}

fn done(folder: &Path, words: &str) -> String {
    let done = line(folder, words);
    assert_eq!(done.code, Some(0), "{words}: {}", done.stderr);
    done.stdout
}

fn refused(folder: &Path, words: &str, part: &str) {
    let done = line(folder, words);
    assert_eq!(done.code, Some(2), "{words}: {}", done.stderr);
    assert_eq!(done.stderr.lines().count(), 1, "{words}: {}", done.stderr);
    assert!(done.stderr.starts_with("error: ") && done.stderr.contains(part), "{words}: {}", done.stderr);
}

const TRAIN: &str = "train --out run --device cpu --set data.train_limit=60 --set data.test_limit=20 --set data.validation=10 \
    --set batch=20 --set epochs=1 --set attack.steps=1 --set evaluation.best_by=pgd1 --set evaluation.protocols=['clean'] \
    --set data.extra=['x.npz']";

#[test]
fn generate_label_and_train() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    assert_eq!(done(path, "data generate --count 50 --out x.npz"), "x.npz: 50 generated images\n");
    let made = ExtraImages::open(&path.join("x.npz"), 10).unwrap();
    assert_eq!(made.labels, images(50).labels);
    assert_eq!(made.chunks().unwrap().next().unwrap().unwrap(), images(50).pixels);
    let out = done(path, TRAIN);
    assert!(
        out.starts_with("quick on ") && out.contains("60 images of generated and 50 extra ones, 1 epochs"),
        "{out}"
    );
    let metrics = fs::read_to_string(path.join("run/metrics.jsonl")).unwrap();
    assert!(metrics.contains("\"images\":50,"), "{metrics}");
    // Neither selections nor evaluations need the file.
    fs::rename(path.join("x.npz"), path.join("y.npz")).unwrap();
    done(path, "eval --weights run --protocol clean --device cpu");
    done(
        path,
        "select --weights run/last.safetensors --recipe run/recipe.toml --method random --fraction 0.5 --out s --device cpu",
    );
    refused(path, &format!("{TRAIN} --resume"), "x.npz: No such file");

    // Labels of a network: those that an evaluation counts as right.
    done(path, "data label y.npz --weights run --out z.npz --device cpu --batch 16");
    let labelled = ExtraImages::open(&path.join("z.npz"), 10).unwrap();
    assert_eq!(labelled.chunks().unwrap().next().unwrap().unwrap(), images(50).pixels);
    let pixels = to_pixels(&images(50).pixels);
    let corrupted: Vec<u8> = array("|u1", &[50, 32, 32, 3], &pixels);
    fs::create_dir(path.join("c")).unwrap();
    fs::write(path.join("c/fog.npy"), &corrupted).unwrap();
    let labels: Vec<i64> = labelled.labels.iter().map(|&label| label.into()).collect();
    fs::write(path.join("c/labels.npy"), npz::labels(&labels)).unwrap();
    let out = done(path, "eval --weights run --corruptions c --protocol clean --device cpu");
    let expected = "fog: clean 100.00 % (severities 100.0, 100.0, 100.0, 100.0, 100.0)\nmean of 1 of 15 corruptions: clean 100.00 %\n";
    assert_eq!(out, expected);

    let limited = "ulimit -f 20; exec \"$0\" data generate --count 50 --out large.npz";
    let failed = Command::new("sh").current_dir(path).args(["-c", limited, &PROGRAM]).output().unwrap();
    let failed = Done::from(failed);
    assert_eq!(failed.code, Some(2), "{}", failed.stderr);
    assert!(failed.stderr.starts_with("error: large.npz: "), "{}", failed.stderr);
    assert!(!path.join("large.npz").exists());

    refused(path, "data label y.npz --weights run --out y.npz", "--out y.npz: also the file of the images");
    fs::write(path.join("unlabelled.npz"), npz::archive(&[("image.npy", &corrupted)], true)).unwrap();
    done(path, "data label unlabelled.npz --weights run --out z.npz --device cpu");
    assert_eq!(ExtraImages::open(&path.join("z.npz"), 10).unwrap(), labelled);
    let train = |file: &str| TRAIN.replace("--out run", "--out other").replace("x.npz", file);
    refused(path, &train("unlabelled.npz"), "unlabelled.npz: holds no label.npy; label its images with");
    let whole = fs::read(path.join("y.npz")).unwrap();
    fs::write(path.join("cut.npz"), &whole[..whole.len() / 2]).unwrap();
    refused(
        path,
        &train("cut.npz"),
        "cut.npz: Missing end of central directory; it is cut short or damaged, or no .npz file",
    );
    let floats = array("<f4", &[50, 32, 32, 3], &pixels);
    fs::write(
        path.join("floats.npz"),
        npz::archive(&[("image.npy", &floats), ("label.npy", &npz::labels(&labels))], false),
    )
    .unwrap();
    refused(path, &train("floats.npz"), "floats.npz: image.npy: dtype <f4, expected |u1 (uint8)");
    let mut eleven = labels.clone();
    eleven[30] = 10;
    fs::write(
        path.join("eleven.npz"),
        npz::archive(&[("image.npy", &corrupted), ("label.npy", &npz::labels(&eleven))], false),
    )
    .unwrap();
    refused(path, &train("eleven.npz"), "eleven.npz: label.npy: record 30 has label 10, expected 0 to 9");
    assert!(!path.join("other").exists(), "a mistake leaves no run");
}

#[test]
fn corruptions_are_measured_one_by_one() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    done(path, "weights init --width 16 --dataset generated --out w");
    refused(path, "eval --weights w --corruptions . --device cpu", ".: holds no file of a corruption");
    let images = images(20);
    for name in ["fog", "saturate", "shot_noise"] {
        let pixels = if name == "fog" { to_pixels(&images.pixels) } else { vec![9; images.pixels.len()] };
        fs::write(path.join(format!("{name}.npy")), array("|u1", &[20, 32, 32, 3], &pixels)).unwrap();
    }
    let labels: Vec<i64> = images.labels.iter().map(|&label| label.into()).collect();
    fs::write(path.join("labels.npy"), npz::labels(&labels)).unwrap();
    let out = done(
        path,
        "eval --weights w --corruptions . --protocol clean,pgd1 --samples 3 --out c.json --device cpu",
    );
    let lines: Vec<&str> = out.lines().collect();
    let begins = [
        "shot_noise: clean ",
        "shot_noise: pgd1 ",
        "fog: clean ",
        "fog: pgd1 ",
        "saturate: clean ",
        "saturate: pgd1 ",
    ];
    let means = ["mean of 2 of 15 corruptions: clean ", "mean of 2 of 15 corruptions: pgd1 "];
    assert!(
        lines.iter().zip(begins.iter().chain(&means)).all(|(line, begin)| line.starts_with(begin)),
        "{out}"
    );
    assert_eq!(lines.len(), 8);
    let report: serde_json::Value = serde_json::from_slice(&fs::read(path.join("c.json")).unwrap()).unwrap();
    assert_eq!((report["samples"].as_u64(), report["complete"].as_bool()), (Some(3), Some(true)));
    let rows = report["results"].as_array().unwrap();
    let clean = |name: &str| {
        let row = rows.iter().find(|row| row["corruption"] == name && row["protocol"] == "clean").unwrap();
        let severities: Vec<f64> =
            row["severities"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
        assert_eq!(severities.len(), 5);
        let mean = severities.iter().sum::<f64>() / 5.0;
        assert!((row["accuracy"].as_f64().unwrap() - mean).abs() < 1e-12);
        (severities, row["standard"].as_bool().unwrap())
    };
    // One picture has one prediction: right where the label is that class, the first three of each severity's four.
    let (flat, standard) = clean("shot_noise");
    assert!(standard && !clean("saturate").1);
    let right = (0..10).map(|class| {
        let share =
            |severity: usize| labels[4 * severity..][..3].iter().filter(|&&label| label == class).count();
        (0..5).map(|severity| share(severity) as f64 / 3.0).collect::<Vec<_>>()
    });
    assert!(right.into_iter().any(|shares| shares == flat), "{flat:?}");
    let mean = (clean("fog").0.iter().sum::<f64>() + flat.iter().sum::<f64>()) / 10.0;
    assert!(
        (report["means"][0]["accuracy"].as_f64().unwrap() - mean).abs() < 1e-12,
        "saturate is not counted"
    );

    refused(
        path,
        "eval --weights w --corruptions . --samples 5",
        "--samples 5: there are 4 images of each severity",
    );
    refused(
        path,
        "eval --weights w --corruptions . --out fog.npy",
        "--out fog.npy: one of the files of --corruptions",
    );
    refused(path, "eval --weights w --corruptions . --resume", "cannot be used with");
}
