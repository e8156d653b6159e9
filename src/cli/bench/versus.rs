//! `secateur bench versus`: two builds in turns on the same bench, and which is faster.
//!
//! Each run is a process of its own: what differs from process to process, such as where memory lies, is then noise within a side
//! and no difference between the sides. What the ratios say is `measure::versus`'s.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::bail;

use super::super::console::Console;
use super::super::{CheckFailed, Interrupted, write_json};
use super::executable::Executable;
use crate::clock;
use crate::engine::StopFlag;
use crate::files::Files;
use crate::measure::compare::{self, Change};
use crate::measure::document::Document;
use crate::measure::versus::{Build, LEAST_ROUNDS, Record, Rounds, VERSION, notes, second_leads};
use crate::text::command_line;

/// What can be run: the benches whose rows are samples.
const BENCHES: [&str; 5] = ["step", "attack", "eval", "kernels", "select"];
/// Seconds a row that a run samples for where its arguments do not say: short, as a drift within a round is noise.
const RUN_SECONDS: &str = "5";
/// Why a comparison ended that the user broke off.
const INTERRUPTED: &str = "interrupted";

#[derive(clap::Args)]
pub struct Args {
    /// The executable to compare with, such as a copy made before a change
    first: PathBuf,
    /// The executable to compare [default: this one]
    second: Option<PathBuf>,
    /// Ratios within 1 + this, and 1 / (1 + this), count as the same; rounds go on until no interval is wider
    #[arg(long, value_name = "SHARE", default_value_t = 0.03)]
    tolerance: f64,
    /// Rounds at most, each a run of both
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(LEAST_ROUNDS as i64..=200))]
    rounds: u32,
    /// Seconds after which no further round begins
    #[arg(long, value_name = "SECONDS", default_value_t = 900.0)]
    timeout: f64,
    /// Write everything, every round's medians included, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What both run, after `--`: a bench and its options, such as step --width 16; 5 seconds a row unless --timeout is there
    #[arg(last = true, required = true, value_name = "BENCH")]
    arguments: Vec<String>,
}

pub fn run(mut args: Args, console: &Console) -> anyhow::Result<()> {
    check(&args)?;
    let given = |option: &str| {
        args.arguments.iter().any(|word| word == option || word.starts_with(&format!("{option}=")))
    };
    if !given("--timeout") {
        args.arguments.extend(["--timeout".into(), RUN_SECONDS.into()]);
    }
    let mut files = Files::default();
    for path in [Some(&args.first), args.second.as_ref()].into_iter().flatten() {
        files.reads("the executable", path)?;
    }
    let json = files.may_write("--json", args.json.as_ref())?;
    let first = Executable::open(&args.first)?;
    let second = args.second.as_deref().map_or_else(Executable::this, Executable::open)?;
    if first.sha256 == second.sha256 {
        console.note("the two executables are the same, byte for byte: what differs is the machine");
    }
    let stop = console.catch_interrupts()?;
    let record = alternate(&args, [&first, &second], stop, console)?;

    console.lines(compare::lines(record.rows.iter().map(|row| &row.compared)));
    for row in &record.rows {
        if let Some(unmet) = &row.unmet {
            console.line(format!("{}: {}: {unmet}", row.compared.name, record.ended));
        }
    }
    console.line(format!("{} rounds in {:.0} s", record.rounds, record.seconds));
    if let Some(json) = &json {
        write_json(json, &record)?;
    }
    if record.ended == INTERRUPTED {
        bail!(Interrupted(None));
    }
    let slower = record.rows.iter().filter(|row| row.compared.change == Change::Slower).count();
    if slower > 0 {
        bail!(CheckFailed(format!("{slower} of {} rows SLOWER", record.rows.len())));
    }
    Ok(())
}

/// Refuses what cannot be run before anything is.
fn check(args: &Args) -> anyhow::Result<()> {
    if !(args.tolerance > 0.0 && args.tolerance.is_finite()) {
        bail!("--tolerance {}: expected a number above 0, such as 0.03", args.tolerance);
    }
    if args.timeout.is_nan() || args.timeout < 0.0 {
        bail!("--timeout {}: expected a number of seconds", args.timeout);
    }
    if !BENCHES.contains(&args.arguments[0].as_str()) {
        bail!("{}: expected one of {} after --", args.arguments[0], BENCHES.join(", "));
    }
    for option in ["--json", "--csv"] {
        if args.arguments.iter().any(|word| word.split('=').next() == Some(option)) {
            bail!("{option} after --: each run writes a file of its own; give --json in front of --");
        }
    }
    Ok(())
}

/// Round after round, until every interval is narrow enough, the rounds or the time are used up, or the user has had enough.
fn alternate(
    args: &Args,
    sides: [&Executable; 2],
    stop: &StopFlag,
    console: &Console,
) -> anyhow::Result<Record> {
    let (begin, started) = (Instant::now(), clock::now().as_secs());
    let folder = tempfile::Builder::new().prefix("secateur-versus-").tempdir()?;
    let mut rounds = Rounds::default();
    let mut record: Option<Record> = None;
    console.bar("rounds", args.rounds as usize);
    for round in 0..args.rounds as usize {
        let run = |side: usize| sides[side].bench(&args.arguments, folder.path(), stop);
        let both = match second_leads(round) {
            false => run(0).and_then(|first| Ok([first, run(1)?])),
            true => run(1).and_then(|second| Ok([run(0)?, second])),
        };
        let both = match (both, &mut record) {
            // What is there is shown.
            (Err(error), Some(record)) if error.is::<Interrupted>() => {
                record.ended = INTERRUPTED.into();
                break;
            }
            (both, _) => both?,
        };
        rounds.add(&both[0], &both[1])?;
        let record = record.get_or_insert_with(|| begun(args, sides, &both, started, console));
        record.rounds = round + 1;
        record.seconds = begin.elapsed().as_secs_f64();
        record.rows = rounds.results(args.tolerance);
        console.at(round + 1);
        if record.rows.iter().all(|row| row.unmet.is_none()) {
            record.ended = "every interval is narrow enough".into();
            break;
        }
        if record.seconds >= args.timeout {
            record.ended = format!("time is up after {:.0} s", record.seconds);
            break;
        }
    }
    console.clear();
    match record {
        Some(record) => Ok(record),
        None => bail!(Interrupted(None)),
    }
}

/// The record of a comparison whose first round is done, and the lines above its table.
fn begun(
    args: &Args,
    sides: [&Executable; 2],
    both: &[Document; 2],
    started: u64,
    console: &Console,
) -> Record {
    let [first, second] = [0, 1].map(|side| Build {
        executable: sides[side].name.clone(),
        sha256: sides[side].sha256.clone(),
        build: both[side].build.clone(),
    });
    for (side, build) in [("first ", &first), ("second", &second)] {
        console.line(format!(
            "{side}   {}: {}, SHA-256 {}",
            build.executable,
            build.build,
            &build.sha256[..12]
        ));
    }
    console.line(both[0].device_line());
    console.line(both[0].work_line());
    for note in notes(&both[0], &both[1]) {
        console.note(note);
    }
    let document = &both[0];
    Record {
        secateur_versus: VERSION,
        command: command_line(),
        arguments: args.arguments.clone(),
        started_unix_seconds: started,
        first,
        second,
        device: document.device.clone(),
        threads: document.threads,
        recipes: document.recipes.clone(),
        images: document.images.clone(),
        width: document.width,
        batch: document.batch,
        tolerance: args.tolerance,
        rounds: 0,
        seconds: 0.0,
        ended: format!("{} rounds are done", args.rounds),
        rows: Vec::new(),
    }
}
