//! Every parser against valid files that were damaged: it returns a value that keeps its promises or an error, and never panics.
//!
//! A target runs for FUZZ_SECONDS (1 by default, 60 in CI) on inputs that FUZZ_SEED (printed) decides. An input that fails is
//! written to a file, whose name the test prints; FUZZ_INPUT=FILE runs a target on that file alone.

use std::fs;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use secateur::data::cifar::{self, CIFAR10, CIFAR100, Layout};
use secateur::data::extra::{ExtraImages, arrays};
use secateur::data::numpy::ArrayFile;
use secateur::data::{IMAGE_BYTES, Images, python, source};
use secateur::digest::sha256;
use secateur::engine::OptimizerState;
use secateur::evaluate::autoattack::{ImageResult, Progress};
use secateur::evaluate::state::{Settings, State};
use secateur::evaluate::{Part, sanity};
use secateur::measure::document::Document;
use secateur::model::layers::WIDTHS;
use secateur::model::{ResNet, Weights, foreign, initialise};
use secateur::philox::{Key, Purpose};
use secateur::recipe::{BUILTIN, Recipe};
use secateur::report::read_runs;
use secateur::train::checkpoint::{self, Checkpoint, SamplesSoFar, SelectionState};
use secateur::train::metrics::{RolledBack, roll_back};
use secateur::train::run_folder::RunFolder;

use crate::common::npz;

/// Words from a seed.
struct Random {
    key: Key,
    at: u32,
}

impl Random {
    fn word(&mut self) -> u32 {
        self.at += 1;
        self.key.block(0, self.at - 1)[0]
    }

    /// Below `limit`, which is not zero.
    fn below(&mut self, limit: usize) -> usize {
        self.word() as usize % limit
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// What a number of a text becomes.
const NUMBERS: [&str; 14] = [
    "0",
    "-1",
    "1",
    "255",
    "65536",
    "4294967295",
    "18446744073709551616",
    "1e999",
    "-1e999",
    "5e-324",
    "1.7e308",
    "null",
    "\"\"",
    "[]",
];
/// What a length field becomes.
const LENGTHS: [u64; 10] = [0, 1, 2, 7, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

/// One change: a flipped bit, a cut, a removed, repeated or foreign piece, another length field, another number.
fn damage(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let len = bytes.len();
    let at = random.below(len + 1);
    let piece = 1 + random.below(64);
    let range = at..len.min(at + piece);
    match random.below(8) {
        0 if at < len => bytes[at] ^= 1 << random.below(8),
        1 if at < len => bytes[at] = random.word() as u8,
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(range)),
        4 => {
            let copy = bytes[range].to_vec();
            bytes.splice(at..at, copy);
        }
        5 if !other.is_empty() => {
            let from = random.below(other.len());
            let piece = other[from..other.len().min(from + piece)].to_vec();
            bytes.splice(range, piece);
        }
        6 => {
            let value = random.pick(&LENGTHS).to_le_bytes();
            let size = *random.pick(&[1, 2, 4, 8]);
            for (slot, byte) in bytes[at..].iter_mut().zip(&value[..size]) {
                *slot = *byte;
            }
        }
        _ => {
            let is_digit = |byte: &u8| byte.is_ascii_digit();
            let Some(begin) = bytes[at..].iter().position(is_digit).map(|found| at + found) else { return };
            let end =
                bytes[begin..].iter().position(|byte| !is_digit(byte)).map_or(len, |found| begin + found);
            bytes.splice(begin..end, random.pick(&NUMBERS).bytes());
        }
    }
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: expected a number")))
}

/// Runs `parse` on damaged copies of `corpus`; it returns whether the input was accepted, and asserts what then must hold.
fn fuzz(name: &str, corpus: &[Vec<u8>], parse: impl Fn(&[u8]) -> bool) {
    if let Ok(path) = std::env::var("FUZZ_INPUT") {
        println!("{name}: {path} accepted: {}", parse(&fs::read(&path).unwrap()));
        return;
    }
    for (at, valid) in corpus.iter().enumerate() {
        assert!(parse(valid), "{name}: the valid input {at} is refused");
    }
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = from_env("FUZZ_SEED").unwrap_or(clock);
    let end = Instant::now() + Duration::from_secs(from_env("FUZZ_SECONDS").unwrap_or(1));
    println!("{name}: FUZZ_SEED={seed}");
    let (mut cases, mut accepted) = (0u32, 0u32);
    while Instant::now() < end {
        let mut random =
            Random { key: Key { seed, purpose: Purpose::Generation, epoch: cases, step: 0 }, at: 0 };
        let mut bytes = random.pick(corpus).clone();
        for _ in 0..1 + random.below(4) {
            let other = random.below(corpus.len());
            damage(&mut bytes, &corpus[other], &mut random);
        }
        match catch_unwind(AssertUnwindSafe(|| parse(&bytes))) {
            Ok(accepts) => accepted += u32::from(accepts),
            Err(_) => {
                let path = std::env::temp_dir().join(format!("secateur-fuzz-{name}-{seed}-{cases}"));
                fs::write(&path, &bytes).unwrap();
                panic!("{name}: case {cases} of FUZZ_SEED={seed}: {}", path.display());
            }
        }
        cases += 1;
    }
    println!("{name}: {cases} inputs, {accepted} accepted");
    assert!(cases > 0 && accepted < cases, "{name}: {accepted} of {cases} accepted: nothing was damaged");
}

#[test]
fn recipes() {
    let corpus: Vec<Vec<u8>> = BUILTIN.iter().map(|builtin| builtin.text.as_bytes().to_vec()).collect();
    fuzz("recipes", &corpus, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let Ok(recipe) = Recipe::parse("fuzzed", text, &[]) else { return false };
        // What is accepted is written and read back the same, and its schedule can be asked.
        assert_eq!(Recipe::parse("fuzzed", &recipe.to_toml(), &[]).unwrap(), recipe);
        assert!(recipe.epoch_schedule().epochs() > 0 && !recipe.name.contains('/'));
        true
    });
}

#[test]
fn overrides() {
    let lines = [
        "attack.epsilon=4/255",
        "evaluation.protocols=['clean','pgd2']",
        "attack.phases=[{from_epoch=1,steps=2}]",
        "name=a b",
        "optimizer.average_decay=\"none\"",
    ];
    let corpus: Vec<Vec<u8>> = lines.iter().map(|line| line.as_bytes().to_vec()).collect();
    let quick = BUILTIN.iter().find(|builtin| builtin.name == "quick").unwrap();
    fuzz("overrides", &corpus, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let Ok(recipe) = Recipe::parse("quick", quick.text, &[text.to_string()]) else { return false };
        assert_eq!(Recipe::parse("quick", &recipe.to_toml(), &[]).unwrap(), recipe);
        true
    });
}

/// A small safetensors file of two types, and one of a whole network under foreign names.
fn weights_corpus() -> Vec<Vec<u8>> {
    let network = ResNet::resnet18(WIDTHS[0], 10);
    let weights = initialise(network, 1);
    let header = r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"F64","shape":[1],"data_offsets":[4,12]}}"#;
    let small = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 12]].concat();
    let mut few = Weights::default();
    for (name, tensor) in weights.tensors.iter().filter(|(_, tensor)| tensor.values.len() < 200) {
        few.insert(format!("net.{name}"), &tensor.shape, tensor.values.clone());
    }
    vec![few.to_bytes(), small]
}

#[test]
fn weights() {
    fuzz("weights", &weights_corpus(), |bytes| {
        let read = Weights::from_bytes(bytes);
        if let Ok(weights) = &read {
            assert!(weights.tensors.values().all(|t| t.values.len() == t.shape.iter().product::<usize>()));
            // None is a whole network.
            assert!(weights.infer_network().and_then(|network| weights.check(&network)).is_err());
        }
        foreign::recognise(bytes);
        assert!(foreign::convert(bytes).is_err());
        // The second file is whole, and not of F32.
        read.is_ok() || read.unwrap_err().to_string().contains("type F16")
    });
}

/// The sets as they are, of a few records a file.
fn small(layout: Layout) -> Layout {
    Layout { train_records: 5, test_records: 5, ..layout }
}

/// The files of the fixture, by name; scripts/make-pickle-fixture.py makes it.
fn fixture() -> Vec<(String, Vec<u8>)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/cifar-pickles.tar.gz");
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(path).unwrap()));
    let files = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (name, bytes)
    });
    files.collect()
}

fn of_fixture(expected: impl Fn(&str) -> bool) -> Vec<Vec<u8>> {
    fixture().into_iter().filter(|(name, _)| expected(name)).map(|(_, bytes)| bytes).collect()
}

fn assert_whole(images: &Images, classes: usize) {
    assert_eq!(images.pixels.len(), images.labels.len() * IMAGE_BYTES);
    assert!(images.labels.iter().all(|label| (*label as usize) < classes));
}

#[test]
fn cifar_binary() {
    fuzz("cifar-binary", &of_fixture(|name| name == "cifar10.bin"), |bytes| {
        let mut images = Images::default();
        let whole = &bytes[..bytes.len() / CIFAR10.record() * CIFAR10.record()];
        let read = cifar::append(&CIFAR10, Path::new("fuzzed"), whole, &mut images);
        if read.is_ok() {
            assert_whole(&images, 10);
            assert_eq!(images.len(), bytes.len() / CIFAR10.record());
        }
        read.is_ok()
    });
}

#[test]
fn cifar_pickles() {
    for (layout, name, classes) in [(CIFAR10, "cifar10.p", 10), (CIFAR100, "cifar100.p", 100)] {
        let corpus = of_fixture(|file| file.starts_with(name) && file.ends_with(".pickle"));
        fuzz(name, &corpus, |bytes| {
            let mut images = Images::default();
            let read = python::append(&layout, Path::new("fuzzed"), bytes, 5, 4, &mut images);
            if read.is_ok() {
                assert_whole(&images, classes);
                assert_eq!(images.len(), 4);
            }
            read.is_ok()
        });
    }
}

/// A gzipped archive of all files of a set, all with the same bytes.
fn archive(folder: &str, names: &[&str], bytes: &[u8], level: Compression) -> Vec<u8> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), level));
    for name in names {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, Path::new(folder).join(name), bytes).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

#[test]
fn cifar_archives() {
    let layout = small(CIFAR100);
    let [binary] = &of_fixture(|name| name == "cifar100.bin")[..] else { panic!("no fixture") };
    let [python] = &of_fixture(|name| name == "cifar100.python2.pickle")[..] else { panic!("no fixture") };
    // Stored, so that damage reaches the tar as well as the gzip around it.
    let corpus: Vec<Vec<u8>> = [Compression::none(), Compression::fast()]
        .into_iter()
        .flat_map(|level| {
            [
                archive(layout.folder, &["train.bin", "test.bin"], binary, level),
                archive(layout.python_folder, layout.python_files, python, level),
            ]
        })
        .collect();
    fuzz("cifar-archives", &corpus, |bytes| {
        match source::from_archive(&layout, Path::new("fuzzed"), bytes) {
            Ok((_, files)) => {
                assert_eq!(files.len(), 2);
                true
            }
            Err(_) => false,
        }
    });
}

#[test]
fn extra_images() {
    let (_folder, path) = one_file("x.npz");
    let images = npz::images(2);
    npz::write(&path, &images);
    let written = fs::read(&path).unwrap();
    let image = npz::array("|u1", &[2, 32, 32, 3], &images.pixels);
    let label = npz::labels(&[3, 9]);
    // Bytes that pack, so that damage reaches what is around them.
    let flat = npz::array("|u1", &[2, 32, 32, 3], &[7; 2 * IMAGE_BYTES]);
    let members = |image| [("image.npy", image), ("label.npy", &label[..])];
    let corpus = [
        written,
        npz::archive(&members(&image), false),
        npz::archive(&members(&flat), true),
        npz::archive(&[("image.npy", &flat)], true),
    ];
    fuzz("extra-images", &corpus, |bytes| {
        fs::write(&path, bytes).unwrap();
        let Ok((array, labels)) = arrays(&path) else { return false };
        let count = array.images().unwrap();
        let read = array.chunks(count).unwrap().collect::<Result<Vec<_>, _>>();
        let whole = read.is_ok_and(|chunks| chunks.concat().len() == count * IMAGE_BYTES);
        match ExtraImages::open(&path, 10) {
            Ok(extra) => {
                assert!(extra.labels.len() == count && extra.labels.iter().all(|&label| label < 10));
                whole
            }
            Err(_) => whole && labels.is_none(),
        }
    });
}

#[test]
fn numpy_arrays() {
    let (_folder, path) = one_file("x.npy");
    let corpus = [npz::array("|u1", &[2, 32, 32, 3], &[1; 2 * IMAGE_BYTES]), npz::labels(&[3, 9])];
    fuzz("numpy-arrays", &corpus, |bytes| {
        fs::write(&path, bytes).unwrap();
        let Ok(array) = ArrayFile::open(&path) else { return false };
        if let Ok(count) = array.images() {
            let read = array.chunks(count).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
            assert_eq!(read.concat().len(), count * IMAGE_BYTES);
            return true;
        }
        array.labels(2, 10).is_ok_and(|labels| labels.len() == 2 && labels.iter().all(|&label| label < 10))
    });
}

#[test]
fn bench_documents() {
    let row = serde_json::json!({
        "name": "step", "samples": [1.0, 2.0], "median": 1.5, "quartiles": [1.0, 2.0], "noise": 0.1, "images": 3,
        "flops": 1e9, "bytes": 1e8, "ceiling_share": null, "bound": null, "unmet": null
    });
    let document = serde_json::json!({
        "secateur_measure": 1, "kind": "bench step", "command": [], "build": "b", "started_unix_seconds": 0,
        "device": {"kind": "cpu"}, "threads": 2, "recipes": ["quick"], "width": 16, "batch": 8, "ceiling_flops": null,
        "ceiling_bytes": null, "ceilings": [], "rows": [row]
    });
    let corpus = [serde_json::to_vec(&document).unwrap()];
    let good = Document::parse(&corpus[0]).unwrap();
    fuzz("bench-documents", &corpus, |bytes| {
        let Ok(document) = Document::parse(bytes) else { return false };
        assert!(document.rows.iter().flat_map(|row| &row.samples).all(|s| s.is_finite() && *s > 0.0));
        if secateur::measure::compare::differences(&good, &document).is_empty() {
            let (rows, _) = secateur::measure::compare::compare_documents(&good, &document, 0.03);
            assert!(rows.iter().all(|row| row.ratio.is_finite()));
        }
        true
    });
}

/// A folder of one file that a target rewrites.
fn one_file(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    (folder, path)
}

/// A checkpoint of the smallest network.
fn checkpoint() -> Checkpoint {
    let network = ResNet::resnet18(WIDTHS[0], 10);
    let weights = initialise(network, 1);
    let trainable = |name: &String| !name.contains("running");
    let tensors = weights.tensors.clone().into_iter().filter(|(name, _)| trainable(name)).collect();
    let progress = r#"{"epoch":3,"step":0,"best":{"epoch":1,"validation_clean":0.5,"validation_robust":0.25},"pgd5_accuracy":0.5,
        "epoch_attacks":{"samples":8,"steps":60,"outliers":0,"boundary":0,"robust":0},
        "epoch_seconds":{"attack":0.0,"train":0.0,"select":0.0,"evaluate":0.0},
        "run_seconds":{"attack":1.5,"train":0.5,"select":0.0,"evaluate":0.25},"run_images":60,"selection":null}"#;
    Checkpoint {
        weights,
        optimizer: OptimizerState { momentum: Weights { tensors }, average: None },
        objective: Weights::default(),
        progress: serde_json::from_str(progress).unwrap(),
        samples: SamplesSoFar::default(),
        selection: SelectionState::default(),
    }
}

#[test]
fn checkpoint_manifests() {
    let folder = tempfile::tempdir().unwrap();
    let path = checkpoint::save(folder.path(), &checkpoint(), 1).unwrap();
    let manifest = path.join("manifest.json");
    fuzz("checkpoint-manifests", &[fs::read(&manifest).unwrap()], |bytes| {
        fs::write(&manifest, bytes).unwrap();
        // The digests hold whatever the manifest became: what loads is what was saved.
        match checkpoint::load(&path) {
            Ok(read) => {
                assert_eq!(
                    (read.progress.epoch, read.weights.tensors.len()),
                    (3, checkpoint().weights.tensors.len())
                );
                true
            }
            Err(_) => false,
        }
    });
}

#[test]
fn checkpoint_progress() {
    let corpus = serde_json::to_vec_pretty(&checkpoint().progress).unwrap();
    fuzz("checkpoint-progress", &[corpus], |bytes| {
        let Ok(progress) = serde_json::from_slice::<checkpoint::Progress>(bytes) else { return false };
        let again: checkpoint::Progress =
            serde_json::from_slice(&serde_json::to_vec(&progress).unwrap()).unwrap();
        assert_eq!(again, progress);
        true
    });
}

#[test]
fn evaluation_states() {
    let (_folder, path) = one_file("r.json.state");
    let samples = 8;
    let mut running = Progress::new(&Part::ALL, samples);
    running.results[1] = ImageResult::Misclassified;
    running.results[2] = ImageResult::BrokenBy(Part::Square);
    let mut state = State::new(settings(samples));
    state.running = Some(running);
    state.save(&path).unwrap();
    let saved = fs::read(&path).unwrap();
    let end = saved.iter().position(|byte| *byte == b'\n').unwrap();
    fuzz("evaluation-states", &[saved[end + 1..].to_vec()], |bytes| {
        // Under the digest of what it became: damage alone ends at the digest.
        let header = format!("{{\"version\":2,\"sha256\":\"{}\"}}\n", sha256(bytes));
        fs::write(&path, [header.as_bytes(), bytes].concat()).unwrap();
        let Ok(state) = State::load(&path, &settings(samples)) else { return false };
        for progress in
            state.running.iter().chain(state.finished.iter().filter_map(|of| of.progress.as_ref()))
        {
            assert_eq!(progress.outcome().robust.len(), samples);
            sanity::warnings(progress);
        }
        true
    });
}

fn settings(samples: usize) -> Settings {
    Settings {
        weights_sha256: "w".into(),
        data: "generated".into(),
        split: "test".into(),
        samples,
        images_sha256: "i".into(),
        epsilon: "8/255".into(),
        seed: 0,
        protocols: vec!["aa".into()],
        device: "cpu".into(),
        build: "b".into(),
        dump: false,
    }
}

#[test]
fn metrics() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunFolder::open(folder.path());
    let recipe = BUILTIN.iter().find(|builtin| builtin.name == "quick").unwrap();
    fs::write(run.recipe(), recipe.text).unwrap();
    let line = |epoch: u32| {
        format!(
            "{{\"epoch\":{epoch},\"learning_rate\":0.1,\"images\":60,\"subset_size\":null,\"subset_fraction\":null,\"selected\":false,\
             \"residual\":null,\"train_loss\":2.25,\"train_robust\":0.125,\"validation_clean\":0.5,\"validation_robust\":0.25,\
             \"attack_steps_per_sample\":10.0,\"outlier_share\":null,\"boundary_share\":null,\"robust_share\":null,\
             \"co_pgd5_accuracy\":null,\"co_detected\":null,\"best\":true,\"seconds_attack\":1.0,\"seconds_train\":0.5,\
             \"seconds_select\":0.0,\"seconds_evaluate\":0.25,\"images_per_second\":40.0}}\n"
        )
    };
    let corpus = [line(1) + &line(2) + &line(3)].map(String::into_bytes);
    fuzz("metrics", &corpus, |bytes| {
        fs::write(run.metrics(), bytes).unwrap();
        let before = run.read_metrics();
        read_runs(&[folder.path().to_path_buf()]).unwrap();
        let rolled = roll_back(bytes, 2);
        assert!(rolled.kept.len() <= bytes.len() + 1);
        assert_eq!(roll_back(&rolled.kept, 2), RolledBack { kept: rolled.kept.clone(), damaged: false });
        fs::write(run.metrics(), &rolled.kept).unwrap();
        let kept = run.read_metrics().unwrap_or_default();
        assert!(kept.iter().all(|epoch| epoch.epoch <= 2));
        before.is_ok()
    });
}
