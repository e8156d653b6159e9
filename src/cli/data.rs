//! `secateur data`: gets and describes data sets.

use std::path::PathBuf;

use anyhow::bail;
use clap::Subcommand;

use super::console::Console;
use super::set_kind;
use crate::data::download::{Archive, BASE_URL, Outcome, fetch};
use crate::data::{DataSet, IMAGE_BYTES, Images, SetKind, cifar, source};

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
    }
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
