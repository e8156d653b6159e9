//! Checkpoints on disk: whole or passed over, whatever happens to their files; never a panic.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use proptest::prelude::*;
use secateur::attack::AttackWork;
use secateur::digest::sha256;
use secateur::engine::OptimizerState;
use secateur::model::{ResNet, Weights, initialise};
use secateur::prune::{Diagnosis, MeanScores};
use secateur::train::checkpoint::{
    Checkpoint, CheckpointError, LastSelection, Progress, SamplesSoFar, SelectionState, list, load,
    load_newest, name, save, weights_to_evaluate,
};
use secateur::train::metrics::{Best, Seconds};

const NETWORK: ResNet = ResNet::resnet18(16, 10);
const FILES: [&str; 8] = [
    "manifest.json",
    "progress.json",
    "weights.safetensors",
    "momentum.safetensors",
    "average.safetensors",
    "objective.safetensors",
    "samples.safetensors",
    "selection.safetensors",
];

/// A checkpoint with values that differ everywhere, losses that are hard to print included.
fn checkpoint(epoch: u32, step: usize) -> Checkpoint {
    let weights = |seed| initialise(NETWORK, seed);
    let seed = u64::from(epoch) * 100 + step as u64;
    let momentum: Weights = Weights {
        tensors: weights(seed + 1)
            .tensors
            .into_iter()
            .filter(|(name, _)| !name.contains("running"))
            .collect(),
    };
    let mut objective = Weights::default();
    objective.insert("accuracy", &[1], vec![1.0 / 3.0]);
    let losses: Vec<f32> = (0..step * 4).map(|i| 1.0 / (i as f32 + 3.0)).collect();
    let diagnosis = Diagnosis {
        class_entropy: 1.0 / 1.1,
        missing_classes: 2,
        effective_size: 100.0 / 7.0,
        wrong: 0.7,
        accuracy_gap: Some(-1.0 / 9.0),
        residual: Some(1.0 / 11.0),
        residual_holdout_draw: None,
    };
    Checkpoint {
        weights: weights(seed),
        optimizer: OptimizerState { momentum, average: Some(weights(seed + 2)) },
        objective,
        progress: Progress {
            epoch,
            step,
            best: (epoch > 0).then_some(Best {
                epoch: 1,
                validation_clean: 0.7,
                validation_robust: 1.0 / 3.0,
            }),
            pgd5_accuracy: Some(2.0 / 3.0),
            epoch_attacks: AttackWork { samples: 8, steps: 60, outliers: 2, boundary: 6, robust: 0 },
            epoch_seconds: Seconds { attack: 0.1, train: 0.2, select: 0.0, evaluate: 0.0, cpu: 0.5 },
            run_seconds: Seconds {
                attack: 10.1,
                train: 5.25,
                select: 1.0 / 9.0,
                evaluate: 1.0 / 7.0,
                cpu: 28.5,
            },
            optimizer_steps: Some(35),
            run_images: Some(70),
            selection: Some(LastSelection { epoch, diagnosis: Some(diagnosis) }),
            ranks: Some(3),
        },
        samples: SamplesSoFar {
            predictions: (0..losses.len() as u32).map(|i| i % 10).collect(),
            scores: losses.iter().map(|loss| loss / 7.0).collect(),
            adversarial: if step > 0 { vec![1.0 / 9.0; 5] } else { Vec::new() },
            losses,
        },
        selection: SelectionState {
            samples: vec![3, 4, 49_999],
            weights: vec![1.0 / 3.0, 2.0, 2.0 / 3.0],
            losses: vec![0.1, f32::INFINITY, 1.0 / 7.0, 4.0],
            scores: MeanScores {
                means: vec![0.2, f32::INFINITY, 1.0 / 3.0, 5.0],
                counts: vec![2.0, 0.0, 1.0, 7.0],
            },
        },
    }
}

fn names(folder: &Path) -> Vec<String> {
    list(folder).unwrap()
}

#[test]
fn what_is_saved_comes_back_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    for (epoch, step) in [(0, 3), (2, 0)] {
        let saved = checkpoint(epoch, step);
        let path = save(folder.path(), &saved, 9).unwrap();
        assert_eq!(load(&path).unwrap(), saved);
    }
    let mut warnings = Vec::new();
    let (newest, _) =
        load_newest(folder.path(), &mut |error| warnings.push(error.to_string())).unwrap().unwrap();
    assert_eq!(newest, folder.path().join(name(2, 0)));
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn the_newest_and_the_best_stay() {
    let folder = tempfile::tempdir().unwrap();
    for epoch in 1..=5 {
        save(folder.path(), &checkpoint(epoch, 0), 2).unwrap();
    }
    assert_eq!(names(folder.path()), [name(5, 0), name(4, 0), name(1, 0)]);
}

#[test]
fn damaged_and_stray_ones_count_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    save(folder.path(), &checkpoint(1, 0), 2).unwrap();
    save(folder.path(), &checkpoint(2, 0), 2).unwrap();
    // Newer by their names: a damaged one, an empty folder, a file, a link, a number that no run writes.
    let damaged = save(folder.path(), &checkpoint(9, 0), 9).unwrap();
    fs::write(damaged.join("weights.safetensors"), b"rubbish").unwrap();
    fs::create_dir(path("epoch-9999-step-000000")).unwrap();
    fs::write(path("epoch-9998-step-000000"), b"notes").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(path(&name(1, 0)), path("epoch-9997-step-000000")).unwrap();
    fs::create_dir(path("epoch-10000-step-0")).unwrap();
    let strays =
        [path("epoch-9999-step-000000"), path("epoch-9998-step-000000"), path("epoch-10000-step-0"), damaged];

    // The best is of epoch 1.
    save(folder.path(), &checkpoint(3, 0), 2).unwrap();
    for epoch in 1..=3 {
        assert_eq!(load(&path(&name(epoch, 0))).unwrap(), checkpoint(epoch, 0), "epoch {epoch}");
    }
    save(folder.path(), &checkpoint(4, 0), 1).unwrap();
    assert_eq!(load(&path(&name(4, 0))).unwrap(), checkpoint(4, 0));
    assert!(path(&name(1, 0)).exists() && !path(&name(2, 0)).exists() && !path(&name(3, 0)).exists());
    // A damaged one between the newest and the last whole one does not push that out.
    fs::write(path(&name(4, 0)).join("progress.json"), b"{}").unwrap();
    save(folder.path(), &checkpoint(5, 0), 2).unwrap();
    save(folder.path(), &checkpoint(6, 0), 2).unwrap();
    assert!(
        load(&path(&name(5, 0))).is_ok() && load(&path(&name(6, 0))).is_ok() && !path(&name(4, 0)).exists()
    );
    for stray in strays {
        assert!(stray.exists(), "{}", stray.display());
    }
}

#[test]
fn weights_that_the_manifest_does_not_name_are_not_evaluated() {
    let folder = tempfile::tempdir().unwrap();
    let averaged = checkpoint(1, 0);
    let mut live = checkpoint(2, 0);
    live.optimizer.average = None;
    for saved in [&averaged, &live] {
        let path = save(folder.path(), saved, 9).unwrap();
        // Of no checkpoint: what an older one or a friend has left there.
        if saved.optimizer.average.is_none() {
            fs::write(path.join("average.safetensors"), initialise(NETWORK, 77).to_bytes()).unwrap();
        }
        let (file, bytes) = weights_to_evaluate(&path).unwrap();
        let expected = saved.optimizer.average.as_ref().unwrap_or(&saved.weights);
        assert_eq!(&Weights::from_bytes(&bytes).unwrap(), expected);
        assert_eq!(fs::read(file).unwrap(), bytes);
    }
    fs::write(folder.path().join(name(1, 0)).join("average.safetensors"), initialise(NETWORK, 77).to_bytes())
        .unwrap();
    let error = weights_to_evaluate(&folder.path().join(name(1, 0))).unwrap_err();
    assert!(
        matches!(error, CheckpointError::Damaged { .. }) && error.to_string().contains("SHA-256"),
        "{error}"
    );
}

/// A disk that fails, or a file that may not be read, says nothing about the checkpoint: it is not passed over for an older one,
/// which would then push it out. A link to itself fails for root too.
#[test]
#[cfg(unix)]
fn what_cannot_be_read_is_not_called_damaged() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &checkpoint(1, 0), 9).unwrap();
    let newest = save(folder.path(), &checkpoint(2, 0), 9).unwrap();
    for file in ["weights.safetensors", "manifest.json"] {
        let (path, away) = (newest.join(file), newest.join("away"));
        fs::rename(&path, &away).unwrap();
        std::os::unix::fs::symlink(&path, &path).unwrap();
        let mut passed_over = 0;
        let error = load_newest(folder.path(), &mut |_| passed_over += 1).unwrap_err();
        assert!(matches!(error, CheckpointError::Io { .. }) && passed_over == 0, "{file}: {error}");
        let text = error.to_string();
        assert!(text.contains(file) && !text.contains("remove") && !text.contains("whole"), "{text}");
        // Nor does it count among those kept.
        save(folder.path(), &checkpoint(3, 0), 2).unwrap();
        fs::remove_file(&path).unwrap();
        fs::rename(&away, &path).unwrap();
        assert_eq!(names(folder.path()), [name(3, 0), name(2, 0), name(1, 0)]);
        assert_eq!(load(&newest).unwrap(), checkpoint(2, 0));
        fs::remove_dir_all(folder.path().join(name(3, 0))).unwrap();
    }
}

#[test]
fn what_a_dead_run_was_writing_is_no_checkpoint_and_goes_away() {
    let folder = tempfile::tempdir().unwrap();
    let unfinished = folder.path().join(format!(".writing-{}", name(7, 0)));
    fs::create_dir(&unfinished).unwrap();
    fs::write(unfinished.join("weights.safetensors"), b"half").unwrap();
    assert!(load_newest(folder.path(), &mut |_| ()).unwrap().is_none());
    save(folder.path(), &checkpoint(1, 0), 2).unwrap();
    assert!(!unfinished.exists());
    assert_eq!(names(folder.path()), [name(1, 0)]);
}

#[test]
fn a_damaged_one_of_the_same_place_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = save(folder.path(), &checkpoint(1, 2), 2).unwrap();
    fs::write(path.join("weights.safetensors"), b"rubbish").unwrap();
    save(folder.path(), &checkpoint(1, 2), 2).unwrap();
    assert_eq!(load(&path).unwrap(), checkpoint(1, 2));
}

#[test]
fn no_folder_is_no_checkpoint_and_no_whole_one_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    assert!(load_newest(&folder.path().join("none"), &mut |_| ()).unwrap().is_none());
    fs::create_dir(folder.path().join(name(3, 0))).unwrap();
    let mut passed_over = Vec::new();
    let error = load_newest(folder.path(), &mut |error| passed_over.push(error.to_string())).unwrap_err();
    assert!(matches!(error, CheckpointError::NoneWhole { count: 1, .. }), "{error}");
    assert!(passed_over[0].contains("epoch-0003-step-000000"), "{passed_over:?}");
}

/// What was written before there was data pruning lacks a few keys.
#[test]
fn an_older_checkpoint_still_loads() {
    let folder = tempfile::tempdir().unwrap();
    let mut expected = checkpoint(1, 2);
    expected.selection = SelectionState::default();
    expected.progress.run_images = None;
    expected.progress.selection = None;
    expected.progress.run_seconds.select = 0.0;
    let path = save(folder.path(), &expected, 2).unwrap();
    assert!(!path.join("selection.safetensors").exists());

    let json = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(path.join(name)).unwrap()).unwrap()
    };
    let mut progress = json("progress.json");
    for key in ["run_images", "selection"] {
        progress.as_object_mut().unwrap().remove(key).unwrap();
    }
    for seconds in ["epoch_seconds", "run_seconds"] {
        progress[seconds].as_object_mut().unwrap().remove("select").unwrap();
    }
    let bytes = serde_json::to_vec(&progress).unwrap();
    let mut manifest = json("manifest.json");
    manifest["files"]["progress.json"] =
        serde_json::json!({ "bytes": bytes.len(), "sha256": sha256(&bytes) });
    fs::write(path.join("progress.json"), bytes).unwrap();
    fs::write(path.join("manifest.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    assert_eq!(load(&path).unwrap(), expected);
}

#[test]
fn a_manifest_opens_no_file_outside_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = save(folder.path(), &checkpoint(1, 2), 2).unwrap();
    let manifest = path.join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap().replace("average.safetensors", "../../secret");
    fs::write(&manifest, text).unwrap();
    let error = load(&path).unwrap_err().to_string();
    assert!(error.contains("lists '../../secret'"), "{error}");
}

/// One folder with an old and a new checkpoint for all cases; each undoes its damage.
fn shared() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            save(folder.path(), &checkpoint(1, 0), 2).unwrap();
            save(folder.path(), &checkpoint(1, 2), 2).unwrap();
            folder
        })
        .path()
}

#[derive(Clone, Debug)]
enum Damage {
    /// XOR of a byte, at this share of the file.
    Flip {
        at: f64,
        mask: u8,
    },
    Truncate {
        at: f64,
    },
    Append(Vec<u8>),
    Replace(Vec<u8>),
    Remove,
}

fn damage() -> impl Strategy<Value = Damage> {
    let bytes = || prop::collection::vec(any::<u8>(), 1..64);
    prop_oneof![
        (0.0..1.0f64, 1u8..).prop_map(|(at, mask)| Damage::Flip { at, mask }),
        (0.0..1.0f64).prop_map(|at| Damage::Truncate { at }),
        bytes().prop_map(Damage::Append),
        bytes().prop_map(Damage::Replace),
        Just(Damage::Remove),
    ]
}

fn apply(path: &PathBuf, damage: &Damage) {
    let mut bytes = fs::read(path).unwrap();
    let place = |at: f64| (at * bytes.len() as f64) as usize;
    match damage {
        Damage::Flip { at, mask } => {
            let place = place(*at);
            bytes[place] ^= mask;
        }
        Damage::Truncate { at } => {
            let place = place(*at);
            bytes.truncate(place);
        }
        Damage::Append(more) => bytes.extend(more),
        Damage::Replace(other) => bytes.clone_from(other),
        Damage::Remove => return fs::remove_file(path).unwrap(),
    }
    fs::write(path, bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_damage_is_named_and_passed_over(file in 0..FILES.len(), damage in damage()) {
        let folder = shared();
        let newest = folder.join(name(1, 2));
        let path = newest.join(FILES[file]);
        let original = fs::read(&path).unwrap();
        apply(&path, &damage);
        let mut passed_over = Vec::new();
        let loaded = load_newest(folder, &mut |error| passed_over.push(error.to_string()));
        fs::write(&path, original).unwrap();

        let (found, loaded) = loaded.unwrap().unwrap();
        if found == newest {
            // White space of the manifest is the only thing that may change unnoticed.
            prop_assert_eq!(FILES[file], "manifest.json");
            prop_assert_eq!(loaded, checkpoint(1, 2));
        } else {
            prop_assert_eq!(loaded, checkpoint(1, 0));
            prop_assert_eq!(passed_over.len(), 1);
            prop_assert!(passed_over[0].contains("epoch-0001-step-000002"), "{}", passed_over[0]);
        }
    }
}
