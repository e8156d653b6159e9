//! What the tests of selections share: a small untrained network, its images, and a last-layer gradient pass over them.

use secateur::batch::Batch;
use secateur::data::{DataSet, Images};
use secateur::engine::{DeviceChoice, Engine, open};
use secateur::model::initialise;
use secateur::objective::Objective;
use secateur::ops::ImageSet;
use secateur::philox::{Key, Purpose};
use secateur::prune::{Candidates, GradPass, PruneError, Selection, Subset};
use secateur::recipe::Recipe;
use secateur::train;

const RECIPE: &str = r#"
    seed = 5
    epochs = 1
    batch = 16
    [data]
    set = "generated"
    train_limit = 90
    test_limit = 10
    [model]
    width = 16
    [objective]
    method = "trades"
    [attack]
    steps = 2
    [optimizer]
    learning_rate = 0.02
    [schedule]
    kind = "constant"
    [evaluation]
    protocols = ["clean"]
"#;

/// What a tensor of `tests/fixtures/selection.safetensors`, written by `scripts/make-selection-fixtures.py`, holds.
pub fn fixture<T: bytemuck::AnyBitPattern>(name: &str) -> Vec<T> {
    let bytes = std::fs::read("tests/fixtures/selection.safetensors").unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}")).data().to_vec();
    data.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

/// The key of the draws of a selection.
pub const DRAWS: Key = Key { seed: 5, purpose: Purpose::Selection, epoch: 0, step: 0 };

/// A network on a device, images, and an objective.
pub struct Subject {
    pub engine: Engine,
    pub set: ImageSet,
    pub images: Images,
    pub objective: Box<dyn Objective>,
    pub scratch: Batch,
}

impl Subject {
    /// An untrained network of width 16 on 90 generated images, with `overrides` on a TRADES recipe.
    pub fn new(device: DeviceChoice, overrides: &[&str]) -> Self {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
        let recipe = Recipe::parse("test", RECIPE, &overrides).unwrap();
        println!("seed {}, {overrides:?}", recipe.seed);
        let data =
            DataSet::open(recipe.data.set, None, recipe.data.train_limit, recipe.data.test_limit).unwrap();
        let mut engine = open(device, train::network(&recipe), recipe.batch).unwrap();
        engine.load_weights(&initialise(train::network(&recipe), recipe.seed)).unwrap();
        let set = ImageSet::upload(&engine, &data.train.pixels, &data.train.labels).unwrap();
        let scratch = Batch::alloc(&engine, recipe.batch).unwrap();
        Self { engine, set, images: data.train, objective: recipe.new_objective(), scratch }
    }

    /// Calls `task` with the engine and a last-layer gradient pass.
    pub fn grad_pass<R>(&mut self, task: impl FnOnce(&mut Engine, &mut GradPass) -> R) -> R {
        let key = Key { seed: 5, purpose: Purpose::SelectionStart, epoch: 0, step: 0 };
        let watch = &mut |_, _| true;
        task(&mut self.engine, &mut GradPass::new(&self.set, &mut *self.objective, &self.scratch, key, watch))
    }

    /// The classes of `samples`.
    pub fn labels(&self, samples: &[u32]) -> Vec<u32> {
        samples.iter().map(|&sample| self.images.labels[sample as usize]).collect()
    }

    /// Chooses `budget` of `samples`, `held_out` apart, with the last losses if given.
    pub fn select(
        &mut self,
        selection: &dyn Selection,
        samples: &[u32],
        held_out: &[u32],
        budget: usize,
        losses: Option<&[f32]>,
    ) -> Result<Subset, PruneError> {
        let labels = self.labels(samples);
        let losses = losses.map(|losses| self.engine.upload("last losses", losses).unwrap());
        self.grad_pass(|engine, pass| {
            let candidates = Candidates {
                samples,
                labels: &labels,
                classes: engine.network().classes,
                held_out,
                budget,
                losses: losses.as_ref(),
                scores: None,
                key: DRAWS,
            };
            selection.select(engine, &candidates, pass)
        })
    }
}
