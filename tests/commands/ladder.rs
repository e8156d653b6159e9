//! `secateur bench ladder`: predictions without a device, and every rung run on the emulated Hopper.

use std::path::Path;

use crate::common::program;

fn ladder(args: &[&str]) -> (String, String, i32) {
    let done = program::secateur(Path::new("."), ["bench", "ladder"].iter().chain(args));
    (done.stdout, done.stderr, done.code.unwrap())
}

#[test]
fn predictions_need_no_device_and_fall_from_rung_to_rung() {
    let (out, err, code) = ladder(&["--dry-run", "--filter", "layer1.0.conv1 forward"]);
    assert_eq!(code, 0, "{err}");
    let rates: Vec<f64> = out
        .lines()
        .filter(|line| line.contains("im2col") || line.contains("planes"))
        .filter(|line| !line.contains("64x256"))
        .map(|line| {
            let cells: Vec<&str> = line.split_whitespace().collect();
            cells[cells.len() - 2].parse().unwrap()
        })
        .collect();
    assert_eq!(rates.len(), 4, "{out}");
    assert!(rates.is_sorted() && rates[3] > 1.5 * rates[0] && rates[3] < 990.0, "{out}");
    assert!(out.contains("cache") && out.contains("tensor"), "{out}");
}

#[test]
fn every_rung_runs_on_the_emulated_hopper() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ladder.json");
    let json = file.to_str().unwrap();
    let small = ["--device", "emulated:sm_90a", "--batch", "1", "--samples", "1", "--timeout", "0"];
    let (out, err, code) =
        ladder(&[&small[..], &["--filter", r"layer[24]\.0\.conv2", "--json", json]].concat());
    assert_eq!(code, 0, "{err}");
    let read: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let rows = read["rows"].as_array().unwrap();
    assert_eq!(read["finished"], true);
    // Two layers, forward and back, on mma, four rungs of wgmma and two blocks: 16 x 16 images of 128 channels, 4 x 4 of 512.
    assert_eq!(rows.len(), 28, "{out}");
    for row in rows {
        assert!(row["median"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!(row["flops"].as_f64().unwrap(), 2.0 * 256.0 * 9.0 * 128.0 * 128.0, "{row}");
    }
}

#[test]
fn what_has_no_ladder_says_so() {
    for (args, wanted, exit) in [
        (vec!["--device", "emulated"], "no wgmma", 3),
        (vec!["--device", "cpu"], "launches no kernels", 3),
        (vec!["--dry-run", "--width", "32"], "width 32", 2),
        (vec!["--dry-run", "--filter", "layer9"], "matches no row", 2),
    ] {
        let (_, err, code) = ladder(&args);
        assert!(err.contains(wanted) && code == exit, "{args:?}: {code}\n{err}");
    }
}
