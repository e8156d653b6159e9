//! AutoAttack as a whole: results that do not depend on batches or interruptions, its checks, its files, and the command line
//! around it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::sync::OnceLock;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use secateur::batch::Batch;
use secateur::data::cifar::CIFAR10;
use secateur::data::generated::{self, Part as Half};
use secateur::digest::sha256;
use secateur::engine::{DeviceChoice, Engine, GradRequest, Pass, StopFlag, WeightSet, open};
use secateur::evaluate::autoattack::{ImageResult, Listener, Progress, run};
use secateur::evaluate::sanity::{Checks, alarms, warnings};
use secateur::evaluate::state::Settings;
use secateur::evaluate::{AdversarialImages, Part, Protocol, Subject, evaluate};
use secateur::files::{Existing, Place};
use secateur::model::layers::IMAGE_LEN;
use secateur::model::{ResNet, Weights, initialise};
use secateur::ops::ImageSet;
use tempfile::TempDir;

use crate::common::program::{Done, PROGRAM, secateur};

const SEED: u64 = 20_261_121;
const NETWORK: ResNet = ResNet::resnet18(16, 10);

/// Initial weights with BatchNorm statistics that fit generated images.
fn weights() -> &'static Weights {
    static WEIGHTS: OnceLock<Weights> = OnceLock::new();
    WEIGHTS.get_or_init(fitted)
}

fn fitted() -> Weights {
    let mut engine = open(DeviceChoice::Cpu, NETWORK, 16).unwrap();
    engine.load_weights(&initialise(NETWORK, SEED)).unwrap();
    let (set, samples) = images(&mut engine, 16);
    let batch = Batch::alloc(&engine, 16).unwrap();
    engine.write(&batch.samples, &samples).unwrap();
    engine.run(&batch.gather(&set, None)).unwrap();
    for _ in 0..30 {
        engine.forward(Pass::Train { slot: 0 }, &batch.images, &batch.logits).unwrap();
    }
    engine.weights(WeightSet::Live).unwrap()
}

fn images(engine: &mut Engine, count: usize) -> (ImageSet, Vec<u32>) {
    let images = generated::images(Half::Test, count);
    (ImageSet::upload(engine, &images.pixels, &images.labels).unwrap(), (0..count as u32).collect())
}

fn subject(count: usize) -> (Engine, ImageSet, Vec<u32>) {
    subject_on(DeviceChoice::Cpu, count)
}

/// An engine and images of which all but the last are labelled as it predicts them.
fn subject_on(device: DeviceChoice, count: usize) -> (Engine, ImageSet, Vec<u32>) {
    let mut engine = open(device, NETWORK, count).unwrap();
    engine.load_weights(weights()).unwrap();
    engine.fold_batch_norm(WeightSet::Live).unwrap();
    let (mut set, samples) = images(&mut engine, count);
    let batch = Batch::alloc(&engine, count).unwrap();
    engine.write(&batch.samples, &samples).unwrap();
    engine.run(&batch.gather(&set, None)).unwrap();
    engine.forward(Pass::Eval, &batch.images, &batch.logits).unwrap();
    let logits = engine.read(&batch.logits).unwrap();
    let mut labels: Vec<u32> = logits.chunks(10).map(|row| argmax(row) as u32).collect();
    labels[count - 1] = (labels[count - 1] + 1) % 10;
    set.labels = engine.upload("labels", &labels).unwrap();
    (engine, set, samples)
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).rev().max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap()
}

/// Keeps what is found and stops after some batch.
#[derive(Default)]
struct Stopping {
    after: Option<usize>,
    found: Vec<(usize, Vec<f32>)>,
}

impl Listener for Stopping {
    fn found(&mut self, position: usize, image: &[f32]) {
        self.found.push((position, image.to_vec()));
    }
    fn batch(&mut self, _progress: &Progress) -> bool {
        match &mut self.after {
            None => true,
            Some(left) => {
                *left -= 1;
                *left > 0
            }
        }
    }
}

#[test]
fn a_stopped_evaluation_goes_on_to_the_same_results() {
    println!("seed {SEED}");
    let (mut engine, set, samples) = subject(9);
    let engine = &mut engine;
    let epsilon = 0.8 / 255.0;
    let subject = Subject { set: &set, samples: &samples, weights: WeightSet::Live, epsilon, seed: SEED };
    let parts = [Part::ApgdCe, Part::ApgdT];
    let scratch = Batch::alloc(engine, 9).unwrap();
    let (mut whole, mut all) = (Progress::new(&parts, 9), Stopping::default());
    assert!(run(engine, subject, &mut whole, &scratch, &mut all).unwrap());
    println!("{:?}", whole.results);
    assert_eq!(whole.results[8], ImageResult::Misclassified);
    assert_eq!(whole.clean(), 8);
    let broken = whole.results.iter().filter(|result| matches!(result, ImageResult::BrokenBy(_))).count();
    assert!((1..8).contains(&broken) && broken == all.found.len(), "{broken} broken: this shows nothing");
    assert_eq!(whole.robust(), 8 - broken);
    let [clean, ce, t] = &whole.stages[..] else { panic!("{:?}", whole.stages) };
    assert_eq!((clean.entered, ce.entered, t.entered), (9, 8, ce.robust));
    assert_eq!((ce.cost.backwards, whole.outcome().correct()), (800, whole.robust()));
    assert!(warnings(&whole).is_empty(), "{:?}", warnings(&whole));

    // In batches of two, stopped after every second one, through the file format each time.
    let (mut progress, mut found) = (Progress::new(&parts, 9), Vec::new());
    let scratch = scratch.rows(0..2);
    let mut stops = 0;
    loop {
        let mut listener = Stopping { after: Some(2), ..Stopping::default() };
        let ended = run(engine, subject, &mut progress, &scratch, &mut listener).unwrap();
        found.extend(listener.found);
        let saved = serde_json::to_string(&progress).unwrap();
        progress = serde_json::from_str(&saved).unwrap();
        assert_eq!(serde_json::to_string(&progress).unwrap(), saved);
        if ended {
            break;
        }
        stops += 1;
        assert!(stops < 20);
    }
    assert!(stops >= 4, "{stops} stops");
    assert_eq!(progress.results, whole.results);
    assert_eq!(progress.clean_predictions, whole.clean_predictions);
    assert_eq!(progress.adversarial_predictions, whole.adversarial_predictions);
    assert_eq!(progress.extent, whole.extent);
    found.sort_by_key(|(position, _)| *position);
    all.found.sort_by_key(|(position, _)| *position);
    assert_eq!(found, all.found);
    for (now, then) in progress.stages.iter().zip(&whole.stages) {
        assert_eq!((now.entered, now.robust, now.cost), (then.entered, then.robust, then.cost));
    }

    // By the general door, a part alone: the same results of that part.
    let mut calls = Vec::new();
    let alone = evaluate(engine, subject, &Protocol::Part(Part::ApgdCe), &scratch, &mut |done, total| {
        calls.push((done, total));
        true
    });
    let expected: Vec<bool> = whole
        .results
        .iter()
        .map(|result| !matches!(result, ImageResult::Misclassified | ImageResult::BrokenBy(Part::ApgdCe)))
        .collect();
    assert_eq!(alone.unwrap().unwrap().robust, expected);
    assert!(
        calls.is_sorted() && calls.iter().all(|(done, total)| done <= total && *total == 18),
        "{calls:?}"
    );
}

/// The CPU searches in bf16, but what counts as broken is what the network in f32 predicts.
#[test]
fn a_cpu_in_bf16_reports_what_f32_predicts() {
    println!("seed {SEED}");
    let (mut engine, set, samples) = subject_on(DeviceChoice::CpuBf16, 24);
    let subject =
        Subject { set: &set, samples: &samples, weights: WeightSet::Live, epsilon: 0.8 / 255.0, seed: SEED };
    let scratch = Batch::alloc(&engine, 24).unwrap();
    let (mut progress, mut listener) = (Progress::new(&[Part::ApgdCe], 24), Stopping::default());
    assert!(run(&mut engine, subject, &mut progress, &scratch, &mut listener).unwrap());
    let mut evaluator = open(DeviceChoice::Cpu, NETWORK, 24).unwrap();
    evaluator.load_weights(weights()).unwrap();
    evaluator.fold_batch_norm(WeightSet::Live).unwrap();
    let logits = evaluator.alloc::<f32>("logits", 240).unwrap();
    let mut predict = |images: &[f32]| {
        let images = evaluator.upload("images", images).unwrap();
        let logits = logits.slice(0..images.len() / IMAGE_LEN * 10);
        evaluator.forward(Pass::Eval, &images, &logits).unwrap();
        evaluator.read(&logits).unwrap().chunks(10).map(|row| argmax(row) as u32).collect::<Vec<_>>()
    };
    engine.write(&scratch.samples, &samples).unwrap();
    engine.run(&scratch.gather(&set, None)).unwrap();
    assert_eq!(progress.clean_predictions, predict(&engine.read(&scratch.images).unwrap()));
    assert!(!listener.found.is_empty(), "nothing was broken: this shows nothing");
    for (position, image) in &listener.found {
        assert_eq!(progress.adversarial_predictions[*position], predict(image)[0], "image {position}");
    }
    // Forward alone: nothing is kept to go back through, and the pass in bf16 is what it was before it.
    engine.fold_batch_norm(WeightSet::Live).unwrap();
    let forward = |engine: &mut Engine, pass| {
        engine.forward(pass, &scratch.images, &scratch.logits).unwrap();
        engine.read(&scratch.logits).unwrap()
    };
    let bf16 = forward(&mut engine, Pass::Eval);
    let f32 = forward(&mut engine, Pass::EvalF32);
    assert!(bf16 != f32 && bf16 == forward(&mut engine, Pass::Eval), "{bf16:?}, {f32:?}");
    forward(&mut engine, Pass::EvalF32);
    let gradient = GradRequest::images(&scratch.perturbed);
    let refusal = engine.backward(Pass::EvalF32, &scratch.logit_gradient, gradient).unwrap_err().to_string();
    assert!(refusal.contains("no forward pass"), "{refusal}");
}

#[test]
fn a_network_without_gradients_is_noticed() {
    let mut flat = initialise(NETWORK, SEED);
    flat.insert("linear.weight", &[10, 128], vec![0.0; 1280]);
    let mut bias = vec![0.0; 10];
    bias[3] = 1.0;
    flat.insert("linear.bias", &[10], bias);
    let mut engine = open(DeviceChoice::Cpu, NETWORK, 4).unwrap();
    let engine = &mut engine;
    engine.load_weights(&flat).unwrap();
    engine.fold_batch_norm(WeightSet::Live).unwrap();
    let (mut set, samples) = images(engine, 6);
    set.labels = engine.upload("labels", &[3u32; 6]).unwrap();
    let scratch = Batch::alloc(engine, 4).unwrap();
    let epsilon = 8.0 / 255.0;
    let subject = Subject { set: &set, samples: &samples, weights: WeightSet::Live, epsilon, seed: SEED };
    let mut results = vec![ImageResult::Robust; 6];
    results[2] = ImageResult::Misclassified;
    let checks = Checks::run(engine, subject, &results, &scratch).unwrap();
    assert_eq!((checks.zero_gradients, checks.fgsm, checks.pgd10), (5, 5, 5));
    // A row of nine zeros and a one sums to one.
    assert!(checks.probabilities && !checks.randomized);
    let mut progress = Progress::new(&[Part::ApgdCe, Part::Square], 6);
    progress.checks = Some(checks);
    let outcome = progress.outcome();
    let said = alarms(&[(&Protocol::AutoAttack, &outcome)]).join("\n") + &warnings(&progress).join("\n");
    assert!(said.contains("aa: 5 of 6 images have no gradient") && said.contains("probabilities"), "{said}");

    let (mut engine, set, samples) = subject_of_noise();
    let subject = Subject { set: &set, samples: &samples, weights: WeightSet::Live, epsilon, seed: SEED };
    let scratch = Batch::alloc(&engine, 4).unwrap();
    let checks = Checks::run(&mut engine, subject, &[ImageResult::Robust; 4], &scratch).unwrap();
    assert_eq!((checks.zero_gradients, checks.probabilities, checks.randomized), (0, false, false));
    assert!(checks.pgd10 <= checks.fgsm && checks.pgd10 < 4, "{checks:?}");
}

fn subject_of_noise() -> (Engine, ImageSet, Vec<u32>) {
    let (engine, set, mut samples) = subject(5);
    samples.truncate(4);
    (engine, set, samples)
}

fn eval(folder: &Path, line: &str) -> Done {
    let args = ["eval", "--weights", "w.safetensors", "--device", "cpu"];
    secateur(folder, args.into_iter().chain(line.split_whitespace()))
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Two of these are predicted right by a network that knows nothing: quick to attack.
const COUNT: usize = 16;
const LINE: &str = "--samples 16 --batch 1 --eps 0.5/255 --seed 5 --protocol clean,fgsm,aa --out r.json --dump adv.safetensors";

#[test]
#[cfg(unix)]
fn the_command_reports_dumps_and_resumes() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    weights().write(&path.join("w.safetensors"), Existing::Refuse).unwrap();

    // Stopped while a part runs.
    let mut child = Process::new(&*PROGRAM)
        .current_dir(path)
        .args(["eval", "--weights", "w.safetensors", "--device", "cpu"])
        .args(LINE.split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("after apgd-ce")), "apgd-ce never ended");
    assert!(Process::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let rest: Vec<String> = lines.collect();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{rest:?} {stderr}");
    assert!(stderr.contains("r.json.state; continue with the same command and --resume"), "{stderr}");
    // What is finished is there, and marked as a part.
    let part = json(&path.join("r.json"));
    assert_eq!((&part["complete"], part["results"].as_array().unwrap().len()), (&false.into(), 2));

    // Not begun anew, and not continued as another evaluation.
    for (line, part) in [
        (LINE.to_string(), "r.json.state: an unfinished evaluation"),
        (LINE.replace("--seed 5", "--seed 6") + " --resume", "with seed 5, this command asks for 6"),
        (LINE.replace("0.5/255", "0.6/255") + " --resume", "with epsilon \"0.5/255\""),
        (LINE.replace(" --dump adv.safetensors", "") + " --resume", "with dump true"),
    ] {
        let done = eval(path, &line);
        assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""), "{line}: {}", done.stderr);
        assert!(done.stderr.contains(part) && done.stderr.lines().count() == 1, "{line}: {}", done.stderr);
    }
    // A state that is not whole is refused, and so are images that are not.
    let refused = |file: &str, bytes: &[u8], part: &str| {
        let whole = fs::read(path.join(file)).unwrap();
        fs::write(path.join(file), bytes).unwrap();
        let done = eval(path, &format!("{LINE} --resume"));
        fs::write(path.join(file), whole).unwrap();
        assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""), "{}", done.stderr);
        assert!(done.stderr.contains(part) && done.stderr.lines().count() == 1, "{}", done.stderr);
    };
    let state = fs::read(path.join("r.json.state")).unwrap();
    for bytes in
        [&state[..state.len() / 2], &state[..state.len() - 1], &vec![0xff; state.len()], b"", b"{}\n{}"]
    {
        refused("r.json.state", bytes, "r.json.state: not a state of an evaluation");
    }
    let mut flipped = state.clone();
    let digit = state.len() - 1 - state.iter().rev().position(u8::is_ascii_digit).unwrap();
    flipped[digit] ^= 1;
    refused("r.json.state", &flipped, "it is damaged");
    let done = eval(path, &format!("{LINE} --resume"));
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let report = json(&path.join("r.json"));
    assert_eq!(report["complete"], true);
    let dump = fs::read(path.join("adv.safetensors")).unwrap();
    for gone in ["r.json.state", "r.json.state.images"] {
        assert!(!path.join(gone).exists(), "{gone}");
    }
    // The report.
    let aa = &report["results"][2];
    println!("{}", aa["verdicts"]);
    assert_eq!((&report["eps"], &report["dataset"]), (&"0.5/255".into(), &"generated".into()));
    assert_eq!((&report["name"], &aa["protocol"]), (&"w".into(), &"aa".into()));
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    let percent = |count: u64| format!("{:.2}", 100.0 * count as f64 / COUNT as f64);
    assert_eq!(report["clean_acc"], percent(number(&report["results"][0]["correct"])));
    assert_eq!(report["autoattack_acc"], percent(number(&aa["correct"])));
    assert_eq!(aa["clean_correct"], report["results"][0]["correct"]);
    assert!(
        number(&aa["correct"]) <= number(&report["results"][1]["correct"]),
        "AutoAttack is no worse than FGSM"
    );
    let (flags, verdicts) = (aa["flags"].as_str().unwrap(), aa["verdicts"].as_str().unwrap());
    assert_eq!((flags.len(), verdicts.len()), (COUNT, COUNT));
    assert!(flags.chars().zip(verdicts.chars()).all(|(flag, verdict)| (flag == '1') == (verdict == 'r')));
    assert_eq!(aa["checks"]["zero_gradients"], 0);
    let parts: Vec<&str> =
        aa["parts"].as_array().unwrap().iter().map(|part| part["part"].as_str().unwrap()).collect();
    assert_eq!(parts, ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]);
    let mut entered = COUNT as u64;
    for part in aa["parts"].as_array().unwrap() {
        let robust = number(&part["robust"]);
        assert!(number(&part["entered"]) == entered && robust <= entered, "{part}");
        assert!(part["seconds"].as_f64().unwrap() > 0.0 && number(&part["forwards"]) >= entered);
        entered = robust;
    }
    assert_eq!(entered, number(&aa["correct"]));
    // Every survivor has met all 5,000 queries of Square and the one of its start.
    assert!(number(&aa["parts"][4]["forwards"]) >= 5001 * entered);

    // The dump: what it says is what the network says.
    let file = SafeTensors::deserialize(&dump).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let data = file.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let longs = |name: &str| -> Vec<i64> {
        let tensor = file.tensor(name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::I64, &[COUNT][..]), "{name}");
        tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    };
    assert_eq!(file.tensor("x_adv").unwrap().shape(), [COUNT, 3, 32, 32]);
    let (x_adv, labels) = (floats("x_adv"), longs("labels"));
    let (clean, adversarial) = (longs("clean_predictions"), longs("adversarial_predictions"));
    let robust = file.tensor("robust").unwrap().data().to_vec();
    let mut engine = open(DeviceChoice::Cpu, NETWORK, COUNT).unwrap();
    engine.load_weights(&Weights::read(&path.join("w.safetensors")).unwrap()).unwrap();
    engine.fold_batch_norm(WeightSet::Live).unwrap();
    let nhwc: Vec<f32> = (0..x_adv.len())
        .map(|i| x_adv[i / IMAGE_LEN * IMAGE_LEN + i % 3 * 1024 + i % IMAGE_LEN / 3])
        .collect();
    let input = engine.upload("x_adv", &nhwc).unwrap();
    let logits = engine.alloc("logits", 10 * COUNT).unwrap();
    engine.forward(Pass::Eval, &input, &logits).unwrap();
    let logits = engine.read(&logits).unwrap();
    let pictures = generated::images(Half::Test, COUNT);
    let mut fooled = 0;
    for n in 0..COUNT {
        assert_eq!(labels[n], i64::from(pictures.labels[n]), "image {n}");
        assert_eq!(argmax(&logits[n * 10..][..10]) as i64, adversarial[n], "image {n}");
        assert_eq!(robust[n] == 1, clean[n] == labels[n] && adversarial[n] == labels[n], "image {n}");
        assert_eq!(robust[n] == 1, flags.as_bytes()[n] == b'1', "image {n}");
        fooled += usize::from(clean[n] == labels[n] && adversarial[n] != labels[n]);
        let pixels = pictures.image(n).iter().map(|byte| f32::from(*byte) / 255.0);
        let far = pixels.zip(&x_adv[n * IMAGE_LEN..]).map(|(x, moved)| (x - moved).abs()).fold(0.0, f32::max);
        assert!(far <= 0.5 / 255.0 + 2.4e-7, "image {n}: {far}");
        assert_eq!(far > 0.0, clean[n] == labels[n] && robust[n] == 0, "image {n}: {far}");
    }
    assert!(fooled > 0 && entered > 0, "{fooled} fooled, {entered} robust: this shows nothing");
    assert!(x_adv.iter().all(|x| (0.0..=1.0).contains(x)));
}

/// An engine checks for a stop between two passes: each of these attacks has one batch and takes far longer than the wait.
#[test]
fn a_stop_is_heard_within_every_attack() {
    println!("seed {SEED}");
    let long = ["pgd10000", "cw", "apgd-ce", "apgd-t", "fab-t", "square", "aa"];
    for (device, count, protocols) in
        [(DeviceChoice::Cpu, 256, &long[..]), (DeviceChoice::Emulated, 2, &long[..2])]
    {
        let (mut engine, set, samples) = subject_on(device, count);
        let scratch = Batch::alloc(&engine, count).unwrap();
        let epsilon = 1e-6;
        let subject = Subject { set: &set, samples: &samples, weights: WeightSet::Live, epsilon, seed: SEED };
        for protocol in protocols {
            let stop = StopFlag::default();
            engine.stop_on(Some(stop.clone()));
            let later = stop.clone();
            let asks = std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(100));
                later.request();
            });
            let protocol: Protocol = protocol.parse().unwrap();
            let outcome = evaluate(&mut engine, subject, &protocol, &scratch, &mut |_, _| true).unwrap();
            asks.join().unwrap();
            assert!(outcome.is_none(), "{protocol} went on to its end");
        }
        // Nothing else has suffered.
        engine.stop_on(None);
        let outcome = evaluate(&mut engine, subject, &Protocol::Clean, &scratch, &mut |_, _| true);
        assert_eq!(outcome.unwrap().unwrap().correct(), count - 1);
    }
}

/// Adversarial images beside a state: those of this evaluation, whole, or an error.
#[test]
fn images_that_are_not_whole_are_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("images");
    let settings = |seed| Settings {
        weights_sha256: String::new(),
        data: "generated".into(),
        split: "test".into(),
        samples: 9,
        images_sha256: String::new(),
        epsilon: "8/255".into(),
        seed,
        protocols: vec!["aa".into()],
        device: "cpu".into(),
        build: "0".into(),
        dump: true,
    };
    let image: Vec<f32> = (0..IMAGE_LEN).map(|i| i as f32 / IMAGE_LEN as f32).collect();
    let mut images = AdversarialImages::in_file(&Place::from(&path), false, &settings(1)).unwrap();
    images.put(3, &image).unwrap();
    images.put(5, &image).unwrap();
    images.sync().unwrap();
    let whole = fs::read(&path).unwrap();
    let get = |position: usize, seed| {
        AdversarialImages::in_file(&Place::from(&path), true, &settings(seed)).unwrap().get(position)
    };
    assert!(get(3, 1).unwrap() == image && get(5, 1).unwrap() == image);
    // Never put; of another evaluation; at another position; cut; filled.
    for position in [2, 4, 6] {
        assert_eq!(get(position, 1).unwrap_err().to_string(), format!("image {position} is damaged"));
    }
    assert!(get(3, 2).is_err());
    let slot = whole.len() / 6;
    let moved = [&whole[slot..], &whole[..slot]].concat();
    for damaged in [moved, whole[..whole.len() - 1].to_vec(), vec![0xff; whole.len()], vec![0; whole.len()]] {
        fs::write(&path, damaged).unwrap();
        assert!(get(5, 1).is_err());
    }
}

/// Two sets of CIFAR-10's size that differ in one pixel of one test image.
fn two_sets(path: &Path) {
    for (name, pixel) in [("one", 7), ("two", 8)] {
        fs::create_dir(path.join(name)).unwrap();
        for (file, records) in CIFAR10.files() {
            let file_path = path.join(name).join(file);
            fs::write(&file_path, [3, pixel]).unwrap();
            let file = fs::OpenOptions::new().write(true).open(&file_path).unwrap();
            file.set_len((records * CIFAR10.record()) as u64).unwrap();
        }
    }
}

#[test]
#[cfg(unix)]
fn a_stop_keeps_what_is_finished_and_the_rest_is_of_the_same_images() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    weights().write(&path.join("w.safetensors"), Existing::Refuse).unwrap();
    two_sets(path);
    let line = "--data one --samples 2 --protocol clean,pgd10000x100 --out r.json";
    let interrupted = |more: &str| {
        let mut child = Process::new(&*PROGRAM)
            .current_dir(path)
            .args(["eval", "--weights", "w.safetensors", "--device", "cpu"])
            .args(line.split(' ').chain(more.split_whitespace()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let clean = lines.find(|line| line.starts_with("clean: ")).expect("the clean images never ended");
        assert!(Process::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{stderr}");
        assert_eq!(
            stderr,
            "error: interrupted; the state is in r.json.state; continue with the same command and --resume\n"
        );
        clean
    };
    let first = interrupted("");
    let report = json(&path.join("r.json"));
    assert_eq!((&report["complete"], report["results"].as_array().unwrap().len()), (&false.into(), 1));
    assert_eq!(report["results"][0]["protocol"], "clean");
    // The same verdicts, seconds included, and not measured again.
    assert_eq!(interrupted("--resume"), first);
    assert_eq!(json(&path.join("r.json")), report);
    for (line, part) in [
        (line.replace("one", "two"), "with images sha256"),
        (line.replace("--samples 2", "--samples 1"), "with samples 2"),
        (format!("{line} --batch 1 --training-images"), "with split"),
    ] {
        let done = eval(path, &format!("{line} --resume"));
        assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""), "{line}: {}", done.stderr);
        assert!(done.stderr.contains(part) && done.stderr.lines().count() == 1, "{line}: {}", done.stderr);
    }
}

/// A pipe can be read once: the digest is that of what was evaluated.
#[test]
#[cfg(unix)]
fn weights_are_read_once() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let bytes = initialise(NETWORK, SEED).to_bytes();
    fs::write(path.join("w"), &bytes).unwrap();
    let line = "eval --weights /dev/stdin --device cpu --protocol clean --samples 3 --out r.json";
    let mut command = Process::new("sh");
    command.current_dir(path).args(["-c", "cat w | exec \"$0\" \"$@\"", &PROGRAM]).args(line.split(' '));
    let done = Done::from(command.output().unwrap());
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(json(&path.join("r.json"))["weights_sha256"], sha256(&bytes));
}

#[test]
fn mistakes_are_named() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let write = |name: &str, weights: &Weights| weights.write(&path.join(name), Existing::Replace).unwrap();
    let good = initialise(NETWORK, SEED);
    write("w.safetensors", &good);
    let mut nan = good.clone();
    nan.tensors.get_mut("layer2.0.conv1.weight").unwrap().values[7] = f32::NAN;
    write("nan.safetensors", &nan);
    write("three.safetensors", &initialise(ResNet::resnet18(16, 3), SEED));
    write("hundred.safetensors", &initialise(ResNet::resnet18(16, 100), SEED));
    fs::write(path.join("bad.state"), "{}").unwrap();
    let cases = [
        ("--eps -1/255", "'-1/255'"),
        ("--eps -0.1", "expected a number above 0 and up to 1"),
        ("--eps 0/255", "expected a number above 0"),
        ("--samples 2001", "--samples 2001: there are"),
        ("--samples -3", "'-3'"),
        ("--batch 0", "'0'"),
        ("--weights nan.safetensors", "layer2.0.conv1.weight[7]: NaN, expected a finite number"),
        ("--weights hundred.safetensors", "weights for 100 classes, and generated has 10; give --data"),
        (
            "--weights three.safetensors --protocol aa",
            "three.safetensors: 3 classes, and the targeted DLR loss of apgd-t needs 4",
        ),
        ("--resume", "needs --state FILE or --out FILE"),
        ("--protocol aa --resume", "--state FILE or --out FILE"),
        ("--protocol aa --resume --state bad.state", "bad.state: not a state of an evaluation"),
        ("--protocol clean --dump d", "--dump: needs exactly one of aa"),
        ("--protocol aa,square --dump d", "--dump: needs exactly one of aa"),
        ("--protocol aa --out nowhere/r.json", "nowhere"),
    ];
    for (line, part) in cases {
        let done = match line.contains("--weights") {
            false => eval(path, line),
            true => secateur(path, ["eval", "--device", "cpu"].into_iter().chain(line.split(' '))),
        };
        assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""), "{line}: {}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1, "{line}: {}", done.stderr);
        assert!(done.stderr.starts_with("error: ") && done.stderr.contains(part), "{line}: {}", done.stderr);
    }
    let left = fs::read_dir(path).unwrap().count();
    assert_eq!(left, 5, "something was left behind");
}
