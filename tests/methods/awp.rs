//! Adversarial weight perturbation as a switch on any objective: in whole runs, their cost, and what does not go with it.

use std::fs;
use std::path::Path;

use secateur::measure::speedup::cost::Cost;
use secateur::objective::Method;
use secateur::recipe::Recipe;
use secateur::train::TrainError;
use secateur::train::checkpoint::Checkpoint;

use crate::common::tiny::{METHODS, RECIPE, newest, of_method, recipe, run};

const AWP: &str = "objective.awp=0.005";

/// The state after a run without a break.
fn trained(recipe: &Recipe) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    run(recipe, folder.path(), None).unwrap();
    newest(folder.path())
}

/// The warm-up ends within the run, and a super-batch is attacked ahead of the steps that it serves.
#[test]
fn a_run_resumes_to_the_same_bits() {
    let set = [
        "epochs=2",
        "objective.awp_warmup=1",
        "optimizer.average_decay=0.8",
        "accelerate.method=bullet-train",
        "accelerate.super_batch=2",
        AWP,
    ];
    let recipe = of_method(Method::Trades, &set);
    let whole = tempfile::tempdir().unwrap();
    run(&recipe, whole.path(), None).unwrap();
    // In the first epoch, in the second between two steps of a super-batch, and once more.
    let broken = tempfile::tempdir().unwrap();
    for stop_after in [2, 3, 1] {
        let error = run(&recipe, broken.path(), Some(stop_after)).unwrap_err();
        assert!(matches!(error, TrainError::Interrupted { .. }), "{error}");
    }
    run(&recipe, broken.path(), None).unwrap();
    for name in ["last.safetensors", "best.safetensors"] {
        let read = |folder: &Path| fs::read(folder.join(name)).ok();
        assert!(read(broken.path()) == read(whole.path()), "{name}");
    }
    let (actual, expected) = (newest(broken.path()), newest(whole.path()));
    assert!(actual.weights == expected.weights && actual.optimizer == expected.optimizer);
    assert!(actual.objective == expected.objective);
}

#[test]
fn it_is_a_switch_on_every_objective() {
    for method in METHODS.into_iter().filter(|&method| method != Method::Free) {
        let [off, warm, on] = [&[][..], &["objective.awp_warmup=1", AWP], &[AWP]].map(|set| {
            trained(&of_method(method, &[&["epochs=1", "batch=8", "data.train_limit=30"], set].concat()))
        });
        assert!(warm.weights == off.weights && warm.optimizer == off.optimizer, "{method}: warm-up");
        assert!(on.weights != off.weights, "{method}: perturbed");
        let finite = |checkpoint: &Checkpoint| {
            checkpoint.weights.tensors.values().all(|tensor| tensor.values.iter().all(|v| v.is_finite()))
        };
        assert!(finite(&on), "{method}");
        assert!(on.objective == off.objective, "{method}: nothing more is saved");
    }
}

#[test]
fn a_training_step_costs_two_gradients() {
    let passes = |set: &[&str]| {
        let cost = Cost::predicted(&recipe(set));
        (cost.train_passes, cost.attack_passes)
    };
    let (train, attack) = passes(&[]);
    assert_eq!(passes(&[AWP]), (2.0 * train, attack));
    // Of three epochs the last two.
    assert_eq!(passes(&[AWP, "objective.awp_warmup=1"]), (train + 2.0 / 3.0 * train, attack));
}

#[test]
fn what_does_not_go_with_it_is_refused() {
    let refused = |set: &[&str]| {
        let set: Vec<String> = set.iter().map(|&text| text.into()).collect();
        Recipe::parse("test", RECIPE, &set).unwrap_err().to_string()
    };
    let free = refused(&["objective.method=free", AWP]);
    assert!(free.contains("objective.awp = 0.005, expected 0") && free.contains("free"), "{free}");
    let large = refused(&["objective.awp=1.5"]);
    assert!(large.contains("objective.awp = 1.5, expected a number in [0, 1]"), "{large}");
}
