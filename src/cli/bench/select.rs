//! `secateur bench select`: how long one selection of training samples takes, in parts.
//!
//! Four rows a selection: the whole, by which sampling stops, and its attack, gradients and algorithm in the same repetitions; a
//! part that takes no time has no row.

use std::ffi::OsStr;

use anyhow::bail;

use super::super::console::Console;
use super::super::{Interrupted, check_selection, method, method_overrides, selection_failed};
use super::measure::Options;
use super::options::Caches;
use crate::measure::ceilings::Ceilings;
use crate::measure::document::{Document, Row};
use crate::measure::harness::{Samples, sample};
use crate::measure::selection::{Choice, Parts, counted, select};
use crate::measure::workload::Cache;
use crate::progress::{ProgressSink, watch};
use crate::prune::{PruneError, SelectionMethod};
use crate::recipe::Recipe;

/// The recipes where none is named.
pub const RECIPES: &str =
    "cifar10-trades-gradmatch,cifar10-trades-glister,cifar10-trades-loss-rank,cifar10-trades-random-online";

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: Options,
    /// How to choose, one row for each recipe and method [default: each recipe's selection.method]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = |name: &str| method(name, SelectionMethod::selects))]
    method: Vec<SelectionMethod>,
    /// Samples to choose from; CIFAR has 50,000
    #[arg(long, value_name = "N", default_value_t = 1280, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    candidates: u32,
    /// Share of the candidates to choose [default: the recipe's selection.fraction]
    #[arg(long, value_name = "SHARE")]
    fraction: Option<f64>,
    /// Classes of the network and of the candidates, 10 or 100 [default: those of the recipe's data]
    #[arg(long, value_name = "N", value_parser = ["10", "100"])]
    classes: Option<String>,
}

/// The seconds of one part.
type Part = fn(&Parts) -> f64;

/// The parts of a selection, and the names of their rows.
const PARTS: [(&str, Part); 3] = [
    ("attack", |parts| parts.attack),
    ("gradients", |parts| parts.gradients),
    ("algorithm", |parts| parts.algorithm),
];

pub fn run(args: &Args, console: &Console) -> anyhow::Result<()> {
    let options = &args.options;
    if options.cache.is_some_and(|caches| caches != Caches::Warm) {
        bail!("--cache: a selection takes too long for its caches to matter; bench select knows warm alone");
    }
    let mut subjects = Vec::new();
    for name in &options.recipe {
        let methods: Vec<_> = args.method.iter().copied().map(Some).collect();
        for method in if methods.is_empty() { vec![None] } else { methods } {
            let recipe = recipe(args, name, method)?;
            let choice = Choice::new(&recipe, args.candidates as usize);
            if choice.budget == 0 {
                let share = recipe.selection.fraction;
                bail!("a share of {share} of {} candidates is none, expected 1 at least", choice.candidates);
            }
            let name = row_name(&recipe, method, &choice);
            if options.filter.is_match(&name) {
                subjects.push((name, recipe, choice));
            }
        }
    }
    let Some((_, first, choice)) = subjects.first() else {
        bail!("--filter {}: matches no row", options.filter)
    };
    let rule = options.sampling.rule()?;
    let tables = options.tables()?;
    let stop = console.catch_interrupts()?;
    let failed = |error| selection_failed(error, None);

    let mut bench = options.open(false, first, choice.batches(first.batch))?;
    bench.engine.stop_on(Some(stop.clone()));
    let ceilings = Ceilings::measure(&mut bench.engine)?;
    let names = options.recipe.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    let mut document = Document::new("bench select", &bench.engine, names, options.batch, &ceilings);
    document.images = bench.images().to_string();
    console.lines(document.device_block());
    for (name, recipe, choice) in &subjects {
        if bench.recipe() != recipe {
            // The old engine's memory first: two may not fit.
            drop(bench);
            bench = options.open(false, recipe, choice.batches(recipe.batch))?;
            bench.engine.stop_on(Some(stop.clone()));
        }
        let mut watch = watch(console, name.clone());
        let (_, amounts) = counted(&mut bench, *choice, &mut watch).map_err(failed)?;
        let mut parts: Vec<Parts> = Vec::new();
        let mut once = || -> Result<f64, PruneError> {
            parts.push(select(&mut bench, *choice, &mut watch)?);
            Ok(parts[parts.len() - 1].total())
        };
        let Some(whole) = sample(&rule, &|| console.stop(), &mut once).map_err(failed)? else {
            bail!(Interrupted(None))
        };
        let images = choice.candidates as u64;
        let mut rows = Vec::from_iter(Row::new(name.clone(), Cache::Warm, whole, images, amounts, &ceilings));
        for (part, seconds) in PARTS {
            let values: Vec<f64> = parts.iter().map(seconds).collect();
            if values.iter().any(|&seconds| seconds > 0.0) {
                let samples = Samples { values, unmet: None };
                let name = format!("{name}: {part}");
                rows.extend(Row::new(name, Cache::Warm, samples, images, [0.0, 0.0], &ceilings));
            }
        }
        tables.add(&mut document, rows)?;
        console.clear();
    }
    console.lines(document.row_lines());
    tables.finish(document)
}

/// The recipe with what the options change.
fn recipe(args: &Args, name: &OsStr, method: Option<SelectionMethod>) -> anyhow::Result<Recipe> {
    let options = &args.options;
    let mut overrides = options.set.clone();
    overrides.extend([format!("model.width={}", options.width), format!("batch={}", options.batch)]);
    if let Some(classes) = &args.classes {
        overrides.push(format!("data.set=cifar{}", if classes == "100" { "100" } else { "10" }));
    }
    overrides.extend(method.into_iter().flat_map(method_overrides));
    let has_fraction = method.is_none_or(SelectionMethod::has_fraction);
    overrides
        .extend(args.fraction.filter(|_| has_fraction).map(|share| format!("selection.fraction={share:?}")));
    let recipe = Recipe::load(name, &overrides)?;
    // Candidates have a last loss here, as after the first epoch.
    check_selection(&recipe, SelectionMethod::selects, true)?;
    Ok(recipe)
}

/// What makes two selections comparable, in words.
fn row_name(recipe: &Recipe, method: Option<SelectionMethod>, choice: &Choice) -> String {
    let method = method.map_or(String::new(), |method| format!(" {method}"));
    let (budget, candidates, classes) = (choice.budget, choice.candidates, recipe.data.set.classes());
    format!("select {}{method}, {budget} of {candidates}, {classes} classes", recipe.name)
}
