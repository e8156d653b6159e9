//! A training run on several engines: on threads of this process, the first on the thread that asks, or on processes.

use std::path::Path;
use std::rc::Rc;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use super::run::follow;
use super::{Result, TrainError, TrainingSetup};
use crate::collective::{Collective, CollectiveError, Processes, RankInfo, Threads};
use crate::engine::{self, Engine};
use crate::progress::{ProgressSink, Silent};

/// How long the processes of a run wait for each other at its start.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs `first` on rank 0 of `ranks`, and trains along on the others; `open` opens the engine of a rank. `folder` is that of the run,
/// where it may be there already.
///
/// # Errors
/// Those of `first`, or of the rank that ended the run, with its number.
pub fn on_threads<T>(
    ranks: usize,
    open: &(dyn Fn(usize) -> engine::Result<Engine> + Sync),
    setup: TrainingSetup,
    folder: Option<&Path>,
    first: impl FnOnce(&mut Engine) -> Result<T>,
) -> Result<T> {
    expect_batch(setup.recipe.batch, ranks)?;
    thread::scope(|scope| {
        let mut groups = Threads::group(ranks);
        let others = groups.split_off(1).into_iter().map(|group| {
            let work = move |engine: &mut Engine| follow(engine, setup, folder, &Silent);
            scope.spawn(move || on_rank(group, open, work))
        });
        let others: Vec<_> = others.collect();
        let done = on_rank(groups.remove(0), open, first);
        with_origin(done, ranks, others)
    })
}

/// Runs `first` where this process is rank 0 of those that `info` names, and trains along elsewhere, which returns `None`.
///
/// # Errors
/// Those of `first`; [`CollectiveError`] where a process does not connect or has ended.
pub fn on_processes<T>(
    info: &RankInfo,
    open: &dyn Fn(usize) -> engine::Result<Engine>,
    setup: TrainingSetup,
    folder: Option<&Path>,
    progress: &dyn ProgressSink,
    first: impl FnOnce(&mut Engine) -> Result<T>,
) -> Result<Option<T>> {
    expect_batch(setup.recipe.batch, info.ranks)?;
    let group = Processes::connect(info, PATIENCE).map_err(engine::Error::from)?;
    match info.rank {
        0 => on_rank(group, open, first).map(Some),
        _ => on_rank(group, open, |engine| follow(engine, setup, folder, progress)).map(|()| None),
    }
}

fn expect_batch(batch: usize, ranks: usize) -> Result<()> {
    if batch >= ranks { Ok(()) } else { Err(TrainError::Batch { batch, ranks }) }
}

/// Does the work of a rank; tells the others why it fails.
fn on_rank<T, O: Fn(usize) -> engine::Result<Engine> + ?Sized>(
    group: impl Collective + 'static,
    open: &O,
    work: impl FnOnce(&mut Engine) -> Result<T>,
) -> Result<T> {
    let group = Rc::new(group);
    let attempt = || {
        let mut engine = open(group.rank())?;
        engine.join(group.clone())?;
        work(&mut engine)
    };
    attempt().inspect_err(|error| group.leave(&error.to_string()))
}

/// The result of rank 0; where another rank ended it, that rank's own error.
fn with_origin<T>(done: Result<T>, ranks: usize, others: Vec<ScopedJoinHandle<Result<()>>>) -> Result<T> {
    // A panic is printed where it happens, and the error of rank 0 names its rank.
    let errors = others.into_iter().zip(1..).filter_map(|(rank, at)| Some((at, rank.join().ok()?.err()?)));
    let errors: Vec<_> = errors.collect();
    let follows = |error: &TrainError| {
        matches!(error, TrainError::Engine(engine::Error::Collective(CollectiveError::Ended { .. })))
    };
    match (done, errors.into_iter().find(|(_, error)| !follows(error))) {
        (Err(error), Some((rank, source))) if follows(&error) => {
            Err(TrainError::Rank { rank, ranks, source: Box::new(source) })
        }
        (done, _) => done,
    }
}
