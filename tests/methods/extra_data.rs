//! Training on extra images: their share of every batch, no part in selections, and the same bits after an interruption.

use std::fs;
use std::path::Path;

use secateur::data::order::{epoch_order, extra_part};
use secateur::engine::{DeviceChoice, open};
use secateur::model::initialise;
use secateur::names::Named;
use secateur::ops::ImageSet;
use secateur::prune::SelectionMethod;
use secateur::recipe::Recipe;
use secateur::train::{self, TrainError, Trainer};

use crate::common::npz;
use crate::common::tiny::{BATCH, newest, recipe, timeless, train_in};

const EXTRA: usize = 40;
/// The images of the tiny recipe.
const OWN: usize = 60;

/// A file of extra images, and the recipe that trains on it.
fn with_extra(folder: &Path, overrides: &[&str]) -> Recipe {
    let path = folder.join("extra.npz");
    if !path.exists() {
        npz::write(&path, &npz::images(EXTRA));
    }
    let extra = format!("data.extra=['{}']", path.display());
    recipe(&[&[extra.as_str(), "attack.steps=1"], overrides].concat())
}

#[test]
fn batches_are_made_of_both_and_the_losses_of_extra_images_go_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let select = ["selection.method=loss-rank", "selection.fraction=0.5", "selection.warm_start=0.34"];
    let recipe = with_extra(folder.path(), &select);
    let data = recipe.data.open(None).unwrap();
    let labels: Vec<u32> = data.train.labels.iter().chain(&data.extra[0].labels).copied().collect();
    let mut engine = open(DeviceChoice::Cpu, train::network(&recipe), BATCH).unwrap();
    let set = ImageSet::alloc(&engine, &labels).unwrap();
    set.write(&engine, 0, &data.train.pixels).unwrap();
    for pixels in data.extra[0].chunks().unwrap() {
        set.write(&engine, OWN, &pixels.unwrap()).unwrap();
    }
    assert_eq!(engine.read(&set.images.slice(0..3072)).unwrap(), data.train.image(0));
    assert_eq!(engine.read(&set.images.slice(OWN * 3072..(OWN + 1) * 3072)).unwrap(), npz::images(1).pixels);
    let split = recipe.split(&data).unwrap();
    engine.load_weights(&initialise(engine.network(), recipe.seed)).unwrap();
    let mut trainer = Trainer::new(&mut engine, &recipe, &set, &split).unwrap();
    assert_eq!(trainer.steps_per_epoch(), OWN.div_ceil(BATCH), "an epoch is one of the training images");
    let outcome = trainer.epoch(&mut |_| true).unwrap().unwrap();
    assert_eq!(outcome.order.len(), OWN);
    let mut own = epoch_order(recipe.seed, 0, &split.train).into_iter();
    let mut seen: Vec<u32> = Vec::new();
    for batch in outcome.order.chunks(BATCH) {
        let (first, extra) = batch.split_at(batch.len() - extra_part(0.7, batch.len()));
        assert!(own.by_ref().take(first.len()).eq(first.iter().copied()));
        assert!(extra.iter().all(|sample| split.extra.contains(sample)));
        seen.extend(first);
    }
    // 16 - 11 of the three whole batches, 12 - 8 of the last one.
    assert_eq!(seen.len(), 3 * 5 + 4);
    let known = trainer.checkpoint().unwrap().selection.losses;
    assert_eq!(known.len(), OWN);
    for (sample, loss) in known.iter().enumerate() {
        let place = outcome.order.iter().position(|&other| other as usize == sample);
        let expected = place.map_or(f32::INFINITY, |place| outcome.samples.losses[place]);
        assert_eq!(*loss, expected, "image {sample}");
    }
}

/// Every selection method, interrupted in its second epoch, against an unbroken run.
#[test]
fn every_selection_resumes_to_the_same_bits_and_chooses_no_extra_image() {
    let methods = SelectionMethod::ALL.iter().map(|&(name, method)| {
        let mut set = vec![
            format!("selection.method={name}"),
            "epochs=2".into(),
            "data.validation=8".into(),
            "evaluation.best_by=pgd1".into(),
        ];
        set.extend(method.has_fraction().then(|| "selection.fraction=0.5".into()));
        (name, set)
    });
    let mut methods: Vec<(&str, Vec<String>)> = methods.collect();
    methods.push((
        "super-batches",
        vec!["accelerate.method=bullet-train".into(), "accelerate.super_batch=2".into()],
    ));
    for (name, set) in methods {
        let folder = tempfile::tempdir().unwrap();
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        let recipe = with_extra(folder.path(), &set);
        let [whole, broken] = ["whole", "broken"].map(|run| folder.path().join(run));
        train_in(&recipe, &whole, None).unwrap();
        let mut stops = 0;
        for stop in [3, 4] {
            match train_in(&recipe, &broken, Some(stop)) {
                Err(TrainError::Interrupted { .. }) => stops += 1,
                done => drop(done.unwrap()),
            }
        }
        train_in(&recipe, &broken, None).unwrap();
        assert!(stops > 0, "{name}: never interrupted");
        let last = |run: &Path| fs::read(run.join("last.safetensors")).unwrap();
        assert!(last(&whole) == last(&broken), "{name}: other bits than those of the unbroken run");
        assert_eq!(timeless(&whole), timeless(&broken), "{name}");
        let state = newest(&whole).selection;
        assert!(
            state.samples.iter().all(|&sample| (sample as usize) < OWN),
            "{name}: an extra image was chosen"
        );
    }
}

#[test]
fn other_extra_images_are_another_run_and_damaged_ones_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = with_extra(folder.path(), &["epochs=1"]);
    let run = folder.path().join("run");
    train_in(&recipe, &run, Some(3)).unwrap_err();
    let session: serde_json::Value =
        serde_json::from_slice(&fs::read(run.join("environment.json")).unwrap()).unwrap();
    assert!(session.to_string().contains("\"extra_images\":40"), "{session}");
    let file = folder.path().join("extra.npz");
    let kept = fs::read(&file).unwrap();
    npz::write(&file, &npz::images(EXTRA + 1));
    let error = train_in(&recipe, &run, None).unwrap_err().to_string();
    assert!(error.contains("the run was started on other images"), "{error}");
    let mut damaged = kept.clone();
    damaged[5000] ^= 1;
    fs::write(&file, damaged).unwrap();
    let error = train_in(&recipe, &run, None).unwrap_err().to_string();
    assert!(error.contains("extra.npz: image.npy: Invalid checksum: "), "{error}");
    fs::write(&file, kept).unwrap();
    train_in(&recipe, &run, None).unwrap();
}
