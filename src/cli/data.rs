//! `secateur data`: gets and describes data sets, and makes the files of extra images.

use std::path::PathBuf;

use anyhow::bail;
use clap::Subcommand;

use super::console::Console;
use super::{CheckFailed, Interrupted, open_interruptible, set_kind, write_by};
use crate::batch::Batch;
use crate::data::download::{Archive, BASE_URL, Outcome, fetch};
use crate::data::{DataSet, IMAGE_BYTES, Images, MAX_GENERATED, SetKind, cifar, extra, generated, source};
use crate::engine::{DeviceChoice, WeightSet};
use crate::evaluate::predict;
use crate::files::{Files, Output};
use crate::ops::{ImageSet, NO_CLASS};
use crate::progress::ProgressSink;
use crate::train::{run_folder, trained};

/// Of files without SHA256SUMS beside them.
const UNVERIFIED: &str = "sizes are right, content unverified (no SHA256SUMS beside the files)";

/// Download a data set, or check and describe one
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Subcommand)]
enum DataCommand {
    /// Download, check and unpack CIFAR-10 or CIFAR-100; an interrupted download is continued
    Download {
        /// cifar10 or cifar100
        #[arg(value_parser = set_kind)]
        set: SetKind,
        /// Folder to unpack into; it becomes the --data of other commands
        #[arg(long, value_name = "DIR", default_value = "data")]
        out: PathBuf,
        /// Address of the folder that holds the archives
        #[arg(long, value_name = "URL", default_value = BASE_URL)]
        url: String,
    },
    /// Read a whole data set, check it and print what it holds
    Info {
        /// cifar10, cifar100 or generated
        #[arg(value_parser = set_kind, default_value = "generated")]
        set: SetKind,
        /// Folder of the files, or the folder around it
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
    },
    /// Write generated images as an .npz file for data.extra, none of them of the generated training or test set
    Generate {
        /// How many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_GENERATED as i64))]
        count: u32,
        /// File to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Write the images of an .npz file with the labels that a network gives them
    Label(LabelArgs),
}

#[derive(clap::Args)]
struct LabelArgs {
    /// An .npz file with the array image; an array label is ignored
    #[arg(value_name = "FILE")]
    images: PathBuf,
    /// A safetensors file, a run folder (its best weights) or a checkpoint folder
    #[arg(long, value_name = "FILE|DIR")]
    weights: PathBuf,
    /// File to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Images a batch
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,
    /// auto, cpu, cpu:bf16, cuda, cuda:N, emulated or emulated:sm_90a
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
}

pub fn run(args: Args, console: &Console) -> anyhow::Result<()> {
    match args.command {
        DataCommand::Download { set, out, url } => {
            let Some(archive) = Archive::official(set) else {
                bail!("the generated set needs no download: use it without --data");
            };
            let mebibytes = |bytes: u64| (bytes >> 20) as usize;
            console.note(format!("{}: {} MiB from {url}", archive.file, mebibytes(archive.bytes)));
            console.bar("MiB", mebibytes(archive.bytes));
            let outcome = fetch(&archive, &url, &out, &mut |bytes| console.at(mebibytes(bytes)));
            console.clear();
            match outcome? {
                Outcome::AlreadyThere(folder) => {
                    console.line(format!("{}: already there, digests right", folder.display()))
                }
                Outcome::Unverified(folder) => console.line(format!(
                    "{}: already there: {UNVERIFIED}; move it elsewhere to download it anew",
                    folder.display()
                )),
                Outcome::Unpacked(folder) => {
                    console.line(format!("{}: {set}, digest right, unpacked", folder.display()))
                }
            }
            console.line(format!("use it with --data {}", out.display()));
        }
        DataCommand::Info { set, data } => {
            let layout = set.layout();
            let set = DataSet::open(set, data.as_deref(), None, None)?;
            console.line(format!("{}: {} classes", set.name, set.classes));
            describe("train", &set.train, &set, console);
            describe("test", &set.test, &set, console);
            if let (Some(layout), Some(folder)) = (layout, data) {
                // Digests are recorded for the binary version alone.
                let place = source::find(&layout, &folder).ok();
                match place.map(|place| cifar::verify(&layout, &place)).transpose()? {
                    Some(true) => console.line("digests right: the files are those of a verified archive"),
                    _ => console.line(UNVERIFIED),
                }
            }
        }
        DataCommand::Generate { count, out } => {
            let out = Files::default().writes("--out", &out)?;
            generate(count, &out, console)?;
            console.line(format!("{}: {count} generated images", out.path().display()));
        }
        DataCommand::Label(args) => label(&args, console)?,
    }
    Ok(())
}

/// Images that are generated at a time.
const CHUNK: u32 = 4096;

fn generate(count: u32, out: &Output, console: &Console) -> anyhow::Result<()> {
    console.catch_interrupts()?;
    console.bar("images", count as usize);
    write_by(out, |out| {
        extra::write(out, count as usize, |add| {
            let mut labels = Vec::new();
            for first in (0..count).step_by(CHUNK as usize) {
                if console.stop() {
                    bail!(Interrupted(None));
                }
                let images = generated::images_in(generated::Part::Extra, first..count.min(first + CHUNK));
                add(&images.pixels)?;
                labels.extend(images.labels);
                console.at(labels.len());
            }
            Ok(labels)
        })
    })
}

fn label(args: &LabelArgs, console: &Console) -> anyhow::Result<()> {
    let mut files = Files::default();
    files.reads("the images", &args.images)?;
    let out = files.writes("--out", &args.out)?;
    let weights = trained::weights(&args.weights, console)?;
    files.reads("--weights", &weights.path)?;
    files.reads_folder("--weights", &args.weights, run_folder::is_of_a_run)?;
    let (images, _) = extra::arrays(&args.images)?;
    let (count, batch) = (images.images()?, args.batch as usize);
    let engine = &mut open_interruptible(args.device, weights.network, batch, console)?;
    engine.load_weights(&weights.weights)?;
    engine.fold_batch_norm(WeightSet::Live)?;
    let scratch = Batch::alloc(engine, batch)?;
    console.bar("images", count);
    write_by(&out, |out| {
        extra::write(out, count, |add| {
            let mut labels = Vec::new();
            for pixels in images.chunks(count)? {
                let pixels = pixels?;
                let samples: Vec<u32> = (0..(pixels.len() / IMAGE_BYTES) as u32).collect();
                let set = ImageSet::upload(engine, &pixels, &vec![0; samples.len()])?;
                for samples in samples.chunks(batch) {
                    let batch = scratch.gathered(engine, &set, samples, None)?;
                    labels.extend(predict(engine, &batch, false)?);
                }
                if let Some(image) = labels.iter().position(|&label| label == NO_CLASS) {
                    let path = args.images.display();
                    bail!(CheckFailed(format!("{path}: image {image} has a logit that is NaN or infinite")));
                }
                add(&pixels)?;
                console.at(labels.len());
            }
            Ok(labels)
        })
    })?;
    console.line(format!("{}: {count} images, labelled by {}", args.out.display(), weights.path.display()));
    Ok(())
}

/// How many images a class has, and the moments of each channel.
fn describe(part: &str, images: &Images, set: &DataSet, console: &Console) {
    let counts = images.class_counts(set.classes);
    let (least, most) = (counts.iter().min().unwrap_or(&0), counts.iter().max().unwrap_or(&0));
    let (mean, deviation) = channel_statistics(images);
    console.line(format!("{part}: {} images, {least} to {most} a class", images.len()));
    console.line(format!("  channel means {mean:.4?}, standard deviations {deviation:.4?} (of [0, 1])"));
}

/// Mean and standard deviation of each channel over all pixels, in [0, 1].
fn channel_statistics(images: &Images) -> ([f64; 3], [f64; 3]) {
    let plane = IMAGE_BYTES / 3;
    let mut histogram = [[0u64; 256]; 3];
    for (index, pixels) in images.pixels.chunks_exact(plane).enumerate() {
        for &pixel in pixels {
            histogram[index % 3][usize::from(pixel)] += 1;
        }
    }
    let count = (images.len() * plane).max(1) as f64;
    let moment = |power: i32| {
        histogram.map(|counts| {
            let terms =
                counts.iter().enumerate().map(|(value, &n)| n as f64 * (value as f64 / 255.0).powi(power));
            terms.sum::<f64>() / count
        })
    };
    let (mean, square) = (moment(1), moment(2));
    let deviation = |channel: usize| (square[channel] - mean[channel].powi(2)).max(0.0).sqrt();
    (mean, [0, 1, 2].map(deviation))
}
