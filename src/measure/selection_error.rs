//! How far the gradient of a chosen subset is from that of all samples: `|scale * sum_S w g - sum_D g| / |sum_D g|`, with g the
//! last-layer gradients.
//!
//! On the images and perturbations that the subset was chosen by, and on fresh draws of augmentation and attack, which are
//! what training on it sees. A matched gradient is not yet a better network, but a choice that misses by more than a random
//! one needs a reason. Every row is a selection as training makes it; only the attack on the candidates, the same for all of
//! them, is made once.

use std::collections::HashMap;
use std::ffi::OsStr;

use serde::{Deserialize, Serialize};

use super::speedup::document::Statistic;
use super::table;
use crate::attack::AttackWork;
use crate::batch::Batch;
use crate::data::DataSet;
use crate::data::order::Split;
use crate::engine::{Engine, Result, Tensor};
use crate::model::Weights;
use crate::objective::Objective;
use crate::ops::ImageSet;
use crate::philox::{Key, Purpose};
use crate::progress::Watch;
use crate::prune::{self, Candidates, Diagnosis, GradPass, LastLayerView, PruneError, Subset, residual};
use crate::recipe::Recipe;

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub name: &'static str,
    /// Keys of `[selection]`.
    pub set: &'static [&'static str],
    /// Selections that the row is the mean of; `None` takes as many as there are fresh draws.
    pub selections: Option<u32>,
}

/// A rule that draws nothing.
const fn fixed(name: &'static str, set: &'static [&'static str]) -> Rule {
    Rule { name, set, selections: Some(1) }
}

/// A random one that looks at no candidate, so that many selections are free.
const fn free(name: &'static str, set: &'static [&'static str]) -> Rule {
    Rule { name, set, selections: Some(10) }
}

/// A random one.
const fn random(name: &'static str, set: &'static [&'static str]) -> Rule {
    Rule { name, set, selections: None }
}

/// The rows of the table.
pub const RULES: [Rule; 22] = [
    fixed("GRAD-MATCH per class, ridge 0.5", &["method=adv-grad-match", "ridge=0.5"]),
    fixed("GRAD-MATCH per class, ridge 0.15", &["method=adv-grad-match", "ridge=0.15"]),
    fixed("GRAD-MATCH per class, ridge 0.05", &["method=adv-grad-match", "ridge=0.05"]),
    fixed("GRAD-MATCH per class, ridge 0", &["method=adv-grad-match", "ridge=0"]),
    fixed(
        "GRAD-MATCH per class, ridge 0.5 absolute",
        &["method=adv-grad-match", "ridge=0.5", "ridge_unit=absolute"],
    ),
    fixed("GRAD-MATCH per sample, ridge 0", &["method=adv-grad-match", "mode=per-sample", "ridge=0"]),
    fixed("GRAD-MATCH per sample, ridge 0.5", &["method=adv-grad-match", "mode=per-sample", "ridge=0.5"]),
    random("GRAD-MATCH per batch, ridge 0.05", &["method=adv-grad-match", "mode=per-batch", "ridge=0.05"]),
    free("InfoBatch", &["method=info-batch"]),
    free("random, class-balanced", &["method=class-balanced"]),
    free("random", &["method=random"]),
    fixed("loss-rank, plain", &["method=loss-rank", "temperature=0", "class_quotas=false"]),
    free("loss-rank, quotas and noise", &["method=loss-rank"]),
    free("loss-rank, quotas, noise, weights 1/p", &["method=loss-rank", "importance_weights=true"]),
    random(
        "Adv-GLISTER, published",
        &[
            "method=adv-glister",
            "greedy=stochastic",
            "gradient=bias",
            "step_along=sum",
            "step_size=learning-rate",
            "temperature=0",
            "class_quotas=false",
        ],
    ),
    fixed(
        "Adv-GLISTER, rounds along the mean",
        &["method=adv-glister", "temperature=0", "class_quotas=false"],
    ),
    random("Adv-GLISTER, quotas and noise", &["method=adv-glister"]),
    fixed("EL2N, plain", &["method=el2n", "temperature=0", "class_quotas=false"]),
    random("EL2N, quotas and noise", &["method=el2n"]),
    fixed("GraNd of the last layer, plain", &["method=grand", "temperature=0", "class_quotas=false"]),
    fixed("EasyCore, plain", &["method=easy-core", "temperature=0", "class_quotas=false"]),
    random("EasyCore, quotas and noise", &["method=easy-core"]),
];

impl Rule {
    /// The recipe that selects so, with a share of the samples where the rule does not decide it.
    pub fn recipe(&self, name: &OsStr, set: &[String], fraction: f64) -> std::result::Result<Recipe, String> {
        let decides = self.set.contains(&"method=info-batch");
        let fraction = if decides { 1.0 } else { fraction };
        let every = usize::from(decides);
        let common = [
            format!("selection.fraction={fraction:?}"),
            format!("selection.every={every}"),
            "selection.warm_start=0".into(),
        ];
        let own = self.set.iter().map(|set| format!("selection.{set}"));
        let set: Vec<String> = set.iter().cloned().chain(common).chain(own).collect();
        Recipe::load(name, &set).map_err(|error| error.to_string())
    }
}

/// What the selections of one rule gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    /// What it changes in the recipe.
    pub set: Vec<String>,
    /// Images of each selection.
    pub images: Vec<usize>,
    /// Relative error of each selection on the draw that it was chosen by.
    pub same: Vec<f64>,
    /// On fresh draws: of each selection as many.
    pub fresh: Vec<f64>,
    /// Figures of the first selection.
    pub first: Diagnosis,
}

/// Rows as text.
pub fn lines(rows: &[Row]) -> Vec<String> {
    let mean = |values: &[f64]| match Statistic::of(values) {
        Some(Statistic { mean, deviation: Some(deviation) }) => format!("{mean:.3} +- {deviation:.3}"),
        Some(Statistic { mean, deviation: None }) => format!("{mean:.3}"),
        None => "-".into(),
    };
    let cells = |row: &Row| {
        let images: Vec<f64> = row.images.iter().map(|&images| images as f64).collect();
        vec![
            row.name.clone(),
            format!("{:.0}", Statistic::of(&images).map_or(0.0, |images| images.mean)),
            format!("{:.0}", row.first.effective_size),
            format!("{:.3}", row.first.class_entropy),
            format!("{:.0} %", 100.0 * row.first.wrong),
            mean(&row.same),
            mean(&row.fresh),
        ]
    };
    let heading = ["selection", "images", "effective", "entropy", "wrong", "same images", "fresh draws"];
    table::lines(&heading, &rows.iter().map(cells).collect::<Vec<_>>())
}

/// The network, the images, and the gradients of all candidates.
pub struct Subject<'a> {
    engine: &'a mut Engine,
    data: &'a DataSet,
    split: &'a Split,
    set: ImageSet,
    scratch: Batch,
    objective: Remembering,
    seed: u64,
    /// Of the candidates as selections see them.
    same: LastLayerView,
    /// Of the fresh draws.
    fresh: Vec<LastLayerView>,
}

impl<'a> Subject<'a> {
    /// Attacks the candidates as selections do, and `draws` times as training does. `watch` is told how many of how many
    /// images are done, and returns whether to go on.
    ///
    /// # Errors
    /// [`PruneError::Stopped`] where it does not; those of the engine.
    pub fn new(
        engine: &'a mut Engine,
        recipe: &Recipe,
        data: &'a DataSet,
        split: &'a Split,
        draws: u32,
        watch: Watch,
    ) -> prune::Result<Self> {
        let set = ImageSet::upload(engine, &data.train.pixels, &data.train.labels)?;
        let scratch = Batch::alloc(engine, recipe.batch)?;
        let mut objective = Remembering { objective: recipe.new_objective(), known: HashMap::new() };
        let seed = recipe.seed;
        let views = (0..=draws).map(|draw| {
            let total = (draws as usize + 1) * split.train.len();
            let before = draw as usize * split.train.len();
            let key = if draw == 0 { start(seed) } else { key(seed, Purpose::AttackStart, draw) };
            let watch = &mut |done, _| watch(before + done, total);
            let mut pass = GradPass::new(&set, &mut objective, &scratch, key, watch);
            pass.augment = recipe.augmentation(seed, draw).filter(|_| draw > 0);
            pass.last_layer(engine, &split.train)
        });
        let mut views = views.collect::<std::result::Result<Vec<_>, _>>()?;
        let same = views.remove(0);
        Ok(Self { engine, data, split, set, scratch, objective, seed, same, fresh: views })
    }

    /// Selects by a rule, as often as it says. `recipe` is [`Rule::recipe`].
    ///
    /// # Errors
    /// Those of the selection.
    pub fn row(&mut self, rule: &Rule, recipe: &Recipe, watch: Watch) -> prune::Result<Row> {
        let samples = &self.split.train;
        let labels: Vec<u32> =
            samples.iter().map(|&sample| self.data.train.labels[sample as usize]).collect();
        let method = recipe.new_selection();
        let (mut images, mut same, mut fresh, mut first) = (Vec::new(), Vec::new(), Vec::new(), None);
        for draw in 0..rule.selections.unwrap_or(self.fresh.len() as u32) {
            let candidates = Candidates {
                scores: None,
                samples,
                labels: &labels,
                classes: self.data.classes,
                held_out: &self.split.held_out,
                budget: recipe.selection.budget(samples.len()),
                losses: Some(&self.same.losses),
                key: key(self.seed, Purpose::Selection, draw),
            };
            let start = start(self.seed);
            let mut pass = GradPass::new(&self.set, &mut self.objective, &self.scratch, start, watch);
            let subset = method.select(self.engine, &candidates, &mut pass)?;
            if first.is_none() {
                let validation = &self.split.validation;
                first = Some(Diagnosis::new(self.engine, &candidates, validation, &mut pass, &subset, None)?);
            }
            images.push(subset.len());
            same.push(error(self.engine, samples, &self.same, &subset)?);
            for view in &self.fresh {
                fresh.push(error(self.engine, samples, view, &subset)?);
            }
        }
        let set = rule.set.iter().map(|set| format!("selection.{set}")).collect();
        let first = first.expect("one selection at least");
        Ok(Row { name: rule.name.into(), set, images, same, fresh, first })
    }
}

fn key(seed: u64, purpose: Purpose, epoch: u32) -> Key {
    Key { seed, purpose, epoch, step: 0 }
}

/// Keys the attack of every selection.
fn start(seed: u64) -> Key {
    key(seed, Purpose::SelectionStart, 0)
}

fn error(engine: &mut Engine, samples: &[u32], view: &LastLayerView, subset: &Subset) -> prune::Result<f64> {
    let error = residual(engine, samples, &view.gradients, subset)?;
    error.ok_or_else(|| PruneError::Invalid("the gradients of all candidates sum to zero".into()))
}

/// An objective that makes each attack once: the perturbed images of a batch by purpose, epoch and samples.
struct Remembering {
    objective: Box<dyn Objective>,
    known: HashMap<(u32, u32, Vec<u32>), Vec<f32>>,
}

impl Objective for Remembering {
    fn needs_fold(&self) -> bool {
        self.objective.needs_fold()
    }

    fn has_clean_pass(&self) -> bool {
        self.objective.has_clean_pass()
    }

    fn attack(&mut self, engine: &mut Engine, key: Key, batch: &Batch) -> Result<AttackWork> {
        let which = (key.purpose as u32, key.epoch, engine.read(&batch.samples)?);
        if let Some(perturbed) = self.known.get(&which) {
            engine.write(&batch.perturbed, perturbed)?;
            return Ok(AttackWork::default());
        }
        let work = self.objective.attack(engine, key, batch)?;
        self.known.insert(which, engine.read(&batch.perturbed)?);
        Ok(work)
    }

    fn gradient(&mut self, engine: &mut Engine, batch: &Batch) -> Result<Option<Tensor<f32>>> {
        self.objective.gradient(engine, batch)
    }

    fn loss(&self, engine: &mut Engine, batch: &Batch, scale: f32) -> Result<()> {
        self.objective.loss(engine, batch, scale)
    }

    fn state(&self) -> Weights {
        self.objective.state()
    }

    fn restore(&mut self, state: &Weights) -> std::result::Result<(), String> {
        self.objective.restore(state)
    }
}
