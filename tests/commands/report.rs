//! `secateur report`: the page is whole, says what the files of the runs say, and bad input is named.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use secateur::data::{DataSet, SetKind};
use secateur::engine::{DeviceChoice, open};
use secateur::evaluate::Protocol;
use secateur::model::{ResNet, initialise};
use secateur::report::{Page, attack, read_runs};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::page::{attributes, check_well_formed, texts};
use crate::common::program::secateur;

/// A run of seconds: 60 generated images, two epochs.
const TINY: [&str; 13] = [
    "--set=data.train_limit=60",
    "--set=data.test_limit=20",
    "--set=data.validation=10",
    "--set=batch=25",
    "--set=epochs=2",
    "--set=attack.steps=2",
    "--set=objective.method=trades",
    "--set=evaluation.every=1",
    "--set=evaluation.samples=20",
    "--set=evaluation.best_by=pgd1",
    "--set=evaluation.protocols=['clean','pgd2']",
    "--set=metrics.tensorboard=true",
    "--device=cpu",
];

/// Two real runs, `full` and `bullet`, and the page of both, `report.html`.
fn real() -> &'static Path {
    static RUNS: OnceLock<TempDir> = OnceLock::new();
    RUNS.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        for (name, more) in [("full", "--set=seed=1"), ("bullet", "--set=accelerate.method=bullet-train")] {
            let done = secateur(folder.path(), [&["train", "--out", name, more], &TINY[..]].concat());
            assert_eq!(done.code, Some(0), "{}", done.stderr);
        }
        let done = secateur(folder.path(), ["report", "full", "bullet", "--device=cpu", "--images=4"]);
        assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
        assert!(done.stdout.starts_with("report.html: 2 runs, "), "{}", done.stdout);
        folder
    })
    .path()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A folder that looks like a run.
struct Made {
    folder: TempDir,
}

impl Made {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn run(&self, name: &str, recipe: &str, device: &str, seconds: &[f64]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("recipe.toml"), recipe).unwrap();
        let session =
            json!([{"device": {"kind": "cpu", "name": device}, "threads": 2, "started_unix_seconds": 0}]);
        fs::write(path.join("environment.json"), session.to_string()).unwrap();
        let line = |(i, seconds): (usize, &f64)| {
            json!({"epoch": i + 1, "train_loss": 2.0 - 0.1 * i as f64, "images": 100, "seconds_attack": 0.75 * seconds,
                   "seconds_train": 0.25 * seconds, "seconds_evaluate": 3.0})
            .to_string()
                + "\n"
        };
        let lines: String = seconds.iter().enumerate().map(line).collect();
        fs::write(path.join("metrics.jsonl"), lines).unwrap();
        let test = |weights, accuracy| json!({"weights": weights, "protocol": "pgd20", "accuracy": accuracy, "total": 100});
        let result = json!({"best": {"epoch": 1}, "test": [test("best", 0.431), test("last", 0.25)]});
        fs::write(path.join("result.json"), result.to_string()).unwrap();
        path
    }

    fn page(paths: &[PathBuf]) -> String {
        let html = Page { runs: read_runs(paths).unwrap(), ..Page::default() }.html();
        check_well_formed(&html);
        html
    }
}

const TRADES: &str = "epochs = 2\nbatch = 25\n[objective]\nmethod = 'trades'\n[data]\nset = 'cifar10'\n";

#[test]
fn a_page_is_well_formed_and_asks_nothing_of_a_network() {
    let html = fs::read_to_string(real().join("report.html")).unwrap();
    check_well_formed(&html);
    // The letters of a picture may spell anything.
    let mut parts = html.split("data:image/png;base64,");
    let first = parts.next().unwrap().to_string();
    let words = parts.fold(first, |words, part| words + part.split_once('"').unwrap().1);
    for word in [
        "http://", "https://", "url(", "@import", "<script", "<link", "<iframe", "<object", "xlink", "NaN",
        "inf ",
    ] {
        assert!(!words.contains(word), "{word}");
    }
    for (tag, name, value) in attributes(&html) {
        match name.as_str() {
            "src" => assert!(tag == "img" && value.starts_with("data:image/png;base64,"), "{value}"),
            "href" | "style" | "srcset" | "action" => panic!("{tag} {name}"),
            name => assert!(!name.starts_with("on"), "{tag} {name}"),
        }
    }
    // Two runs of four images, each with three pictures.
    assert_eq!(html.matches("<img ").count(), 24);
    for section in ["Runs", "Training", "Time", "Accuracy against time", "Images", "Recipe", "Environment"] {
        assert!(html.contains(&format!("<h2>{section}</h2>")), "{section}");
    }
    assert!(
        !html.contains("<h2>Notes</h2>")
            && !html.contains("<h2>Kernels</h2>")
            && !html.contains("<h2>Selection</h2>")
    );
}

#[test]
fn the_numbers_are_those_of_the_files() {
    let html = fs::read_to_string(real().join("report.html")).unwrap();
    let titles = texts(&html, "title");
    let number = |text: &str| text.replace('\u{2212}', "-").parse::<f64>().unwrap();
    let mut compared = 0;
    for run in ["full", "bullet"] {
        let rows = metrics(&real().join(run));
        assert_eq!(rows.len(), 2);
        for row in &rows {
            let epoch = row["epoch"].as_u64().unwrap();
            for (field, name, factor) in [
                ("train_loss", "loss", 1.0),
                ("validation_robust", "robust %", 100.0),
                ("validation_clean", "clean %", 100.0),
                ("learning_rate", "learning rate", 1.0),
                ("attack_steps_per_sample", "steps", 1.0),
            ] {
                let start = format!("{run}: epoch {epoch}, {name} ");
                let said: Vec<&String> = titles.iter().filter(|title| title.starts_with(&start)).collect();
                assert_eq!(said.len(), 1, "{start}");
                let (actual, expected) =
                    (number(&said[0][start.len()..]), factor * row[field].as_f64().unwrap());
                assert!(
                    (actual - expected).abs() <= 6e-4 * expected.abs(),
                    "{start}: {actual}, expected {expected}"
                );
                compared += 1;
            }
            if run == "bullet" {
                for (field, group) in [
                    ("outlier_share", "outliers"),
                    ("boundary_share", "boundary"),
                    ("robust_share", "robust"),
                ] {
                    let share = 100.0 * row[field].as_f64().unwrap();
                    let expected = format!("epoch {epoch}: {group}");
                    let said = titles.iter().find(|title| title.starts_with(&expected)).unwrap();
                    assert!(said.ends_with(&format!(" {share:.1} %")), "{said}");
                }
            }
        }
        let result = json_of(&real().join(run).join("result.json"));
        for row in result["test"].as_array().unwrap() {
            let accuracy = format!("{:.1} %", 100.0 * row["accuracy"].as_f64().unwrap());
            assert!(texts(&html, "td").contains(&accuracy), "{accuracy}");
        }
        let sum = |field: &str| rows.iter().map(|row| row[field].as_f64().unwrap()).sum::<f64>();
        let whole: f64 = sum("seconds_attack") + sum("seconds_train") + sum("seconds_evaluate");
        for stage in ["attack", "train", "evaluate"] {
            let seconds = sum(&format!("seconds_{stage}"));
            let expected = format!("{run}: {stage} {seconds:.1} s ({:.0} %)", 100.0 * seconds / whole);
            assert!(titles.contains(&expected), "{expected}");
        }
    }
    assert_eq!(compared, 20);
    // The recipes differ in the seed and in what makes the attack cheaper.
    assert!(html.contains("2 keys differ.") && html.contains("<mark>bullet-train</mark>"));
}

#[test]
fn a_speed_up_is_that_over_full_training_of_the_same() {
    let made = Made::new();
    let bullet = format!("{TRADES}[accelerate]\nmethod = 'bullet-train'\n");
    let pruned = format!("{TRADES}[selection]\nmethod = 'adv-grad-match'\nfraction = 0.3\n");
    let paths = [
        made.run("full-1", TRADES, "A", &[40.0, 40.0]),
        made.run("full-2", TRADES, "A", &[60.0, 60.0]),
        made.run("bullet", &bullet, "A", &[20.0, 20.0]),
        made.run("pruned", &pruned, "A", &[12.5, 12.5]),
        made.run("elsewhere", &pruned, "B", &[1.0, 1.0]),
    ];
    let select = fs::read_to_string(paths[3].join("metrics.jsonl")).unwrap();
    fs::write(
        paths[3].join("metrics.jsonl"),
        select.replace("\"train_loss\"", "\"seconds_select\":7.5,\"train_loss\""),
    )
    .unwrap();
    let html = Made::page(&paths);
    // The control is the mean of the full runs, 100 s; selection counts, evaluation does not.
    for words in [
        "full-1: 80.0 s of training (seconds), 1.25 times as fast as full-1 and full-2",
        "bullet: 40.0 s of training (seconds), 2.50 times as fast as full-1 and full-2",
        "pruned: 40.0 s of training (seconds), 2.50 times as fast as full-1 and full-2",
    ] {
        assert!(texts(&html, "title").contains(&words.to_string()), "{words}");
    }
    assert!(
        html.contains("elsewhere: no full run of this objective on the same images, schedule and device.")
    );
    assert!(html.contains("pruned: select 15.0 s (33 %)"));
    assert!(html.contains("trades + adv-grad-match 30 %"));

    // A run under way is shown and not compared.
    fs::remove_file(paths[2].join("result.json")).unwrap();
    let html = Made::page(&paths);
    assert!(html.contains("2 (under way)") && html.contains("bullet: not finished."));
    assert!(!texts(&html, "title").iter().any(|title| title.starts_with("bullet: 40.0 s")));
}

#[test]
fn seconds_are_of_the_cpu_where_all_runs_counted_them() {
    let made = Made::new();
    let bullet = format!("{TRADES}[accelerate]\nmethod = 'bullet-train'\n");
    let mut paths = [("full", TRADES, 30.0), ("bullet", &bullet, 10.0)].map(|(name, recipe, cpu)| {
        let path = made.run(name, recipe, "A", &[40.0]);
        let metrics = fs::read_to_string(path.join("metrics.jsonl")).unwrap();
        let counted = metrics.replace("\"images\"", &format!("\"seconds_cpu\":{cpu},\"images\""));
        fs::write(path.join("metrics.jsonl"), counted).unwrap();
        path
    });
    let says =
        |paths: &[PathBuf], words: &str| texts(&Made::page(paths), "title").contains(&words.to_string());
    assert!(says(&paths, "bullet: 10.0 s of training (CPU seconds), 3.00 times as fast as full"));
    paths[0] = made.run("older", TRADES, "A", &[40.0]);
    assert!(says(&paths, "bullet: 40.0 s of training (seconds), 1.00 times as fast as older"));
}

#[test]
fn what_is_missing_or_damaged_is_left_out_and_named() {
    let made = Made::new();
    let path = made.run("run", TRADES, "A", &[1.0, 2.0, 3.0]);
    let whole = fs::read_to_string(path.join("metrics.jsonl")).unwrap();
    let page = || Made::page(std::slice::from_ref(&path));
    assert!(!page().contains("<h2>Notes</h2>"));

    let damage = |file: &str, bytes: Option<&[u8]>, note: &str| {
        let file = path.join(file);
        let before = fs::read(&file).ok();
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        match bytes {
            Some(bytes) => fs::write(&file, bytes).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        let html = page();
        let notes = texts(&html, "li");
        assert!(
            notes.iter().any(|actual| actual.starts_with("run: ") && actual.contains(note)),
            "{note}: {notes:?}"
        );
        match before {
            Some(before) => fs::write(&file, before).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        html
    };
    damage("result.json", None, "no result.json: the run is under way");
    damage("result.json", Some(b"{\"test\": ["), "result.json: not JSON");
    damage("environment.json", Some(b"{}"), "environment.json: not a list");
    damage("recipe.toml", Some(b"epochs = ["), "recipe.toml: not TOML");
    damage("recipe.toml", Some(b"\xff\xfe"), "recipe.toml: ");
    damage("metrics.jsonl", None, "no metrics.jsonl: no epoch is finished");
    damage("metrics.jsonl", Some(b""), "metrics.jsonl: empty: no epoch is finished");
    damage(
        "selection/epoch-0002.safetensors",
        Some(b"nothing"),
        "epoch-0002.safetensors: not a whole safetensors file",
    );
    // A line under way, a line of something else, and an epoch that comes twice: the others stand.
    let cut = format!("{whole}{{\"epoch\": 4, \"train_l");
    let html = damage("metrics.jsonl", Some(cut.as_bytes()), "the last line is not whole yet");
    assert!(html.contains("run: epoch 3, loss 1.8") && !html.contains("epoch 4"));
    let odd = whole.replacen('\n', "\n[1, 2]\n", 1);
    let html = damage("metrics.jsonl", Some(odd.as_bytes()), "line 2: not an object with an epoch");
    assert!(html.contains("run: epoch 2, loss 1.9"));
    damage("metrics.jsonl", Some(whole.repeat(2).as_bytes()), "line 4: epoch 1 after epoch 3");

    // What editors and other builds put around the lines is nothing to note.
    let edited = format!("\u{feff}{}\n\n", whole.replace('\n', "\r\n\n"));
    fs::write(path.join("metrics.jsonl"), edited).unwrap();
    let html = page();
    assert!(!html.contains("<h2>Notes</h2>") && html.contains("run: epoch 3, loss 1.8"));
    // The metrics of a build that knew fewer fields.
    let older = include_bytes!("../../results/cifar10-demo/metrics.jsonl");
    fs::write(path.join("metrics.jsonl"), older).unwrap();
    assert!(!page().contains("<h2>Notes</h2>"));
}

#[test]
fn the_figure_is_an_svg_file_of_every_tested_run() {
    let made = Made::new();
    for (name, seconds) in [("full", 60.0), ("a<b", 20.0), ("untested", 5.0)] {
        made.run(name, TRADES, "A", &[seconds]);
    }
    let folder = made.folder.path();
    fs::remove_file(folder.join("untested/result.json")).unwrap();
    let done =
        secateur(folder, "report full a<b untested --images 0 --figure f.svg".split(' ').collect::<Vec<_>>());
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let svg = fs::read_to_string(folder.join("f.svg")).unwrap();
    assert!(svg.starts_with("<svg xmlns="));
    check_well_formed(&format!("<!DOCTYPE html>\n{svg}"));
    assert_eq!(
        texts(&format!("<!DOCTYPE html>\n{svg}"), "title"),
        [("full", "60.0 s"), ("a&lt;b", "20.0 s")].map(|(name, seconds)| {
            format!("{name} (best): pgd20 43.1 % of 100 test images, {seconds} of training")
        })
    );
    // Each by its name below the drawing.
    for name in [">full</text>", ">a&lt;b</text>"] {
        assert_eq!(svg.matches(name).count(), 1, "{name}");
    }
}

#[test]
fn wrong_arguments_are_one_line_and_leave_no_page() {
    let made = Made::new();
    made.run("run", TRADES, "A", &[1.0]);
    made.run("other/run", TRADES, "A", &[1.0]);
    let folder = made.folder.path();
    fs::remove_file(made.run("untested", TRADES, "A", &[1.0]).join("result.json")).unwrap();
    fs::create_dir(folder.join("empty")).unwrap();
    fs::write(folder.join("bad.json"), "{\"kernels\": 3}").unwrap();
    fs::write(folder.join("none.json"), "{\"kernels\": []}").unwrap();
    fs::write(folder.join("zero.json"), "{\"kernels\": [{\"name\": \"k\", \"seconds\": 0}]}").unwrap();
    let cases: &[(&str, &str)] = &[
        ("report", "<RUN>"),
        ("report nowhere", "nowhere: No such file or directory"),
        ("report bad.json", "bad.json: a file, expected the folder of a run"),
        ("report run empty", "empty: holds no recipe.toml, expected the folder of a run"),
        ("report run run", "run: named twice"),
        ("report run other/../run", "named twice"),
        ("report run --out no/where.html", "no: No such file"),
        ("report run --kernels nowhere.json", "nowhere.json: No such file"),
        ("report run --kernels bad.json", "bad.json: invalid type"),
        ("report run --kernels none.json", "none.json: holds no kernel"),
        ("report run --kernels zero.json", "zero.json: kernel k: seconds 0, expected a number above 0"),
        ("report run --images 101", "'101'"),
        ("report run --device gpu", "device 'gpu'"),
        ("report untested --figure f.svg", "--figure: no run has a test accuracy under attack"),
    ];
    for (line, part) in cases {
        let done = secateur(folder, line.split(' ').collect::<Vec<_>>());
        assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""), "{line}: {}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1, "{line}: {}", done.stderr);
        assert!(done.stderr.starts_with("error: ") && done.stderr.contains(part), "{line}: {}", done.stderr);
    }
    assert!(!folder.join("report.html").exists() && !folder.join("f.svg").exists());

    // Pictures that cannot be made are no error: here the images of CIFAR-10 are not given, then there are no weights.
    let done = secateur(folder, ["report", "run", "other/run"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stderr.lines().all(|line| line.starts_with("warning: ") && line.contains("no pictures: ")));
    assert_eq!(done.stderr.lines().count(), 2, "{}", done.stderr);
    let html = fs::read_to_string(folder.join("report.html")).unwrap();
    check_well_formed(&html);
    // Two folders of one name are told apart by the folder above.
    assert!(html.contains("other/run: epoch 1, loss 2"), "the names are not told apart");
}

#[test]
#[cfg(unix)]
fn names_are_text_wherever_they_stand() {
    let made = Made::new();
    let hostile = "<b>&\"'<script>alert(1)</script>";
    let recipe = format!("{TRADES}[evaluation]\nbest_by = '''<i>{hostile}'''\n").replace("/script", "script");
    let hostile = &hostile.replace('/', "");
    let path = made.run(hostile, &recipe, "<u>device", &[1.0, 2.0]);
    let html = Made::page(&[path, made.run("plain", TRADES, "A", &[1.0])]);
    for tag in ["<b>", "<i>", "<u>", "<script>"] {
        assert!(!html.contains(tag), "{tag}");
    }
    assert!(html.contains("&lt;b&gt;&amp;&quot;&#39;&lt;script&gt;alert(1)&lt;script&gt;"));
}

#[test]
fn selections_are_shown_with_their_weights() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    copy(&real().join("full"), &run);
    fs::create_dir(run.join("selection")).unwrap();
    let write = |epoch: u32, indices: &[i64], weights: &[f32]| {
        use safetensors::tensor::{Dtype, TensorView};
        let indices_bytes: Vec<u8> = indices.iter().flat_map(|index| index.to_le_bytes()).collect();
        let weight_bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        let views = [
            ("indices", TensorView::new(Dtype::I64, vec![indices.len()], &indices_bytes).unwrap()),
            ("weights", TensorView::new(Dtype::F32, vec![weights.len()], &weight_bytes).unwrap()),
        ];
        let bytes = safetensors::serialize(views, None).unwrap();
        fs::write(run.join(format!("selection/epoch-{epoch:04}.safetensors")), bytes).unwrap();
    };
    write(1, &[1, 2], &[1.0, 1.0]);
    write(2, &[3, 8, 21], &[0.5, 2.0, 0.5]);
    let done = secateur(folder.path(), ["report", "run", "--device=cpu", "--images=2", "--out=page.html"]);
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
    let html = fs::read_to_string(folder.path().join("page.html")).unwrap();
    check_well_formed(&html);
    assert!(html.contains("run: kept for epoch 2") && html.contains("run: dropped"));
    assert!(html.contains("8, weight 2.000</span>") && html.contains("3, weight 0.500</span>"));
    // Two images of three pictures, two kept, two dropped.
    assert_eq!(html.matches("<img ").count(), 10);

    write(3, &[60], &[1.0]);
    let done = secateur(folder.path(), ["report", "run", "--device=cpu", "--out=page.html"]);
    assert_eq!(done.code, Some(0));
    assert!(
        done.stderr.contains("the subset holds image 60, expected one of the 60 training images"),
        "{}",
        done.stderr
    );
}

#[test]
fn kernels_are_placed_under_their_roof() {
    let made = Made::new();
    let run = made.run("run", TRADES, "A", &[1.0]);
    let file = made.folder.path().join("bench.json");
    // A device of 100 TFLOP/s and 1 TB/s: its ridge is at 100 FLOP/byte.
    let bench = json!({
        "device": "passed over",
        "ceiling_flops": 1e14,
        "ceiling_bytes": 1e12,
        "kernels": [
            {"name": "conv<bf16>", "seconds": 2e-3, "flops": 1e11, "bytes": 1e8, "grid": [1, 2]},
            {"name": "fold", "seconds": 4e-4, "flops": 1e8, "bytes": 1e8},
            {"name": "copy", "seconds": 2e-4, "bytes": 1e8},
        ]
    });
    fs::write(&file, bench.to_string()).unwrap();
    let kernels = Some(secateur::report::Kernels::read(&file).unwrap());
    let html = Page { runs: read_runs(&[run]).unwrap(), kernels, ..Page::default() }.html();
    check_well_formed(&html);
    let titles = texts(&html, "title");
    assert!(titles.contains(&"conv&lt;bf16&gt;: 1000 FLOP/byte, 50,000 GFLOP/s".to_string()), "{titles:?}");
    assert!(titles.contains(&"fold: 1 FLOP/byte, 250 GFLOP/s".to_string()));
    let cells = texts(&html, "td");
    let row = |us: &str| {
        let at = cells.iter().position(|cell| cell == us).unwrap();
        [cells[at + 3].as_str(), cells[at + 4].as_str()]
    };
    assert_eq!(
        [row("2000"), row("400"), row("200")],
        [["50", "compute"], ["25", "memory"], ["50", "memory"]]
    );
}

#[test]
fn pictures_show_an_attack_within_its_ball() {
    let data = DataSet::open(SetKind::Generated, None, Some(20), Some(10)).unwrap();
    let network = ResNet::resnet18(16, data.classes);
    let mut engine = open(DeviceChoice::Cpu, network, 4).unwrap();
    engine.load_weights(&initialise(network, 3)).unwrap();
    let Protocol::Pgd(pgd) = "pgd5".parse().unwrap() else { panic!("not PGD") };
    let pictures = attack(&mut engine, &data, &pgd, 8.0 / 255.0, 1, 4).unwrap();
    assert_eq!(pictures.len(), 4);
    let decode = |file: &[u8]| {
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        pixels
    };
    for (i, picture) in pictures.iter().enumerate() {
        let (clean, adversarial) = (decode(&picture.clean), decode(&picture.adversarial));
        let perturbation = decode(&picture.perturbation);
        let planes = data.test.image(i);
        let mut moved = 0;
        for (at, ((&clean, &adversarial), &shown)) in
            clean.iter().zip(&adversarial).zip(&perturbation).enumerate()
        {
            assert_eq!(clean, planes[at % 3 * 1024 + at / 3]);
            let difference = i32::from(adversarial) - i32::from(clean);
            assert!(difference.abs() <= 8, "{difference}");
            moved += usize::from(difference != 0);
            // One level of eight is sixteen of 255; the adversarial image is rounded to half a level.
            assert!((i32::from(shown) - 128 - 16 * difference).abs() <= 9, "{shown}, {difference}");
        }
        assert!(moved > 1500, "{moved} of 3072 values moved");
        assert_eq!(picture.label, data.class_names[data.test.labels[i] as usize]);
        assert!(data.class_names.contains(&picture.attacked_prediction));
    }
}

#[test]
fn a_run_that_asks_for_it_keeps_a_tensorboard_file_of_its_epochs() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    copy(&real().join("full"), &run);
    let events = || {
        let names = fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().path());
        let found: Vec<PathBuf> =
            names.filter(|path| path.to_string_lossy().contains("events.out.tfevents.")).collect();
        assert_eq!(found.len(), 1);
        fs::read(&found[0]).unwrap()
    };
    let count =
        |bytes: &[u8], word: &[u8]| bytes.windows(word.len()).filter(|window| *window == word).count();
    let before = events();
    for tag in [&b"train/loss"[..], b"validation/robust", b"seconds/attack", b"learning_rate"] {
        assert_eq!(count(&before, tag), 2, "{}", String::from_utf8_lossy(tag));
    }
    // Resumed from its end, the run has nothing to add.
    let done = secateur(folder.path(), ["train", "--out=run", "--resume", "--device=cpu"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(events() == before, "a finished run was written again");
    // Resumed from its first epoch, it has the second one once.
    fs::remove_dir_all(run.join("checkpoints/epoch-0002-step-000000")).unwrap();
    let done = secateur(folder.path(), ["train", "--out=run", "--resume", "--device=cpu"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(count(&events(), b"train/loss"), 2);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}
