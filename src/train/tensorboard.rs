//! TensorBoard event files: the scalars of metrics.jsonl, for `tensorboard --logdir`.
//!
//! A file is a row of TFRecords (length, masked CRC-32C of it, data, masked CRC-32C of that), each holding a protobuf
//! `Event`: wall time, step, and a `Summary` of named floats. The step is the epoch. The formats are those of
//! tensorflow/core/lib/io/record_writer.h and tensorflow/core/util/event.proto. Only what is needed of both is here,
//! which is less than a dependency would bring.
//!
//! The file follows metrics.jsonl: [`synchronize`] cuts it to the epochs that a resumed run keeps and adds those that it
//! lacks, so that no epoch stands in it twice. `scripts/check-tensorboard.py` reads it with the real TensorBoard.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::metrics::{self, EpochMetrics, Line};
use super::run_folder::{METRICS, RunFolder, RunFolderError, at};
use crate::clock;
use crate::files::{Existing, Folder, How, if_there, limit};

/// What TensorBoard looks for in a file's name.
const PREFIX: &str = "events.out.tfevents.";
/// What the name of our file ends in, and the writer that its first event names: another program's file is not touched.
const WRITER: &str = "secateur";
/// The first event of every file.
const VERSION: &str = "brain.Event:2";

type Fields = serde_json::Map<String, serde_json::Value>;

/// Makes the event file say what metrics.jsonl says. Where it is damaged, keeps it under the name that is returned, and goes on with
/// the records that are whole.
pub fn synchronize(folder: &RunFolder) -> Result<Option<PathBuf>, RunFolderError> {
    let metrics = if_there(folder.read(METRICS, limit::METRICS)).map_err(at(&folder.metrics()))?;
    let metrics = metrics.unwrap_or_default();
    let epochs: Vec<(u64, Fields)> = metrics::lines(&metrics).filter_map(Line::fields).collect();
    let last = epochs.iter().map(|(epoch, _)| *epoch).max().unwrap_or(0);
    let name = find_or_create(folder)?;
    let path = folder.path().join(&name);
    let bytes = folder.folder().read(&name, limit::METRICS).map_err(at(&path))?;
    let Whole { keep, done, damaged } = whole_until(&bytes, last);
    // Not under its own name: TensorBoard would read both.
    let aside = if damaged { Some(folder.set_aside("tensorboard", &bytes)?) } else { None };
    let fit = || {
        let mut file = folder.folder().file(&name, How::Update)?;
        if keep == 0 {
            file.set_len(0)?;
            file.write_all(&record(&first_event(clock::now().as_secs_f64())))?;
        } else if keep < bytes.len() {
            file.set_len(keep as u64)?;
        }
        file.sync_all()
    };
    fit().map_err(at(&path))?;
    let missing = epochs.iter().filter(|(epoch, _)| *epoch > done);
    missing.into_iter().try_for_each(|(epoch, fields)| add(folder, *epoch, fields))?;
    Ok(aside)
}

/// Adds one epoch.
pub fn append(folder: &RunFolder, metrics: &EpochMetrics) -> Result<(), RunFolderError> {
    let value = serde_json::to_value(metrics).expect("plain structs always serialise");
    add(folder, metrics.epoch.into(), value.as_object().unwrap_or(&Fields::new()))
}

fn add(folder: &RunFolder, epoch: u64, fields: &Fields) -> Result<(), RunFolderError> {
    let name = find_or_create(folder)?;
    let event = scalars_event(clock::now().as_secs_f64(), epoch, &scalars(fields));
    folder.folder().append(&name, &record(&event)).map_err(at(&folder.path().join(&name)))
}

/// Whether a path ends in the name of an event file, of whichever program.
pub fn is_event_file(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()))
}

/// The name of a run's event file, which is made where there is none.
fn find_or_create(run: &RunFolder) -> Result<OsString, RunFolderError> {
    let folder = run.folder();
    let found = find(folder).and_then(|found| found.map_or_else(|| create(folder), Ok));
    found.map_err(at(folder.path()))
}

/// The event file of ours; the first by name, should there be several.
fn find(folder: &Folder) -> io::Result<Option<OsString>> {
    let mut names = folder.names()?;
    names.sort();
    Ok(names.into_iter().find(|name| is_ours(folder, name)))
}

fn is_ours(folder: &Folder, name: &OsStr) -> bool {
    let text = name.to_string_lossy();
    let Some(rest) = text.strip_prefix(PREFIX) else { return false };
    if !rest.ends_with(WRITER) {
        return false;
    }
    // Damaged from the first byte on, a file is not known to be ours.
    let first = record(&first_event(0.0));
    let mut begin = vec![0; first.len()];
    let read = folder.file(name, How::Read).and_then(|mut file| io::Read::read_exact(&mut file, &mut begin));
    let event = |record: &[u8]| record[12 + 9..record.len() - 4].to_vec();
    read.is_ok() && event(&begin) == event(&first)
}

/// Starts an event file, named after the time as TensorBoard orders files by their names.
fn create(folder: &Folder) -> io::Result<OsString> {
    let time = clock::now().as_secs_f64();
    let mut number = time as u64;
    loop {
        let name = format!("{PREFIX}{number:010}.{WRITER}");
        match folder.write(&name, &record(&first_event(time)), Existing::Refuse) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            written => return written.map(|()| name.into()),
        }
    }
}

/// Every finite number of an epoch but its own, under names that TensorBoard groups: `train_loss` is `train/loss`.
fn scalars(fields: &Fields) -> Vec<(String, f32)> {
    let scalar = |(name, value): (&String, &serde_json::Value)| {
        let value = value.as_f64().filter(|value| value.is_finite() && name != "epoch")?;
        let group = ["train", "validation", "seconds", "subset"].into_iter().find_map(|group| {
            let rest = name.strip_prefix(group)?.strip_prefix('_')?;
            Some(format!("{group}/{rest}"))
        });
        Some((group.unwrap_or_else(|| name.clone()), value as f32))
    };
    fields.iter().filter_map(scalar).collect()
}

// Fields of tensorflow.Event: 1 double wall_time, 2 int64 step, 3 string file_version, 5 Summary summary,
// 10 SourceMetadata source_metadata, whose field 1 is the writer.
// Of tensorflow.Summary: 1 repeated Value value. Of Value: 1 string tag, 2 float simple_value.

fn first_event(time: f64) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend(time.to_le_bytes());
    bytes_field(3, VERSION.as_bytes(), &mut event);
    let mut source = Vec::new();
    bytes_field(1, WRITER.as_bytes(), &mut source);
    bytes_field(10, &source, &mut event);
    event
}

fn scalars_event(time: f64, step: u64, scalars: &[(String, f32)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in scalars {
        let mut entry = Vec::new();
        bytes_field(1, tag.as_bytes(), &mut entry);
        entry.push(2 << 3 | 5);
        entry.extend(value.to_le_bytes());
        bytes_field(1, &entry, &mut summary);
    }
    let mut event = vec![1 << 3 | 1];
    event.extend(time.to_le_bytes());
    event.push(2 << 3);
    varint(step, &mut event);
    bytes_field(5, &summary, &mut event);
    event
}

/// A field of bytes: key, length, content.
fn bytes_field(number: u8, content: &[u8], into: &mut Vec<u8>) {
    into.push(number << 3 | 2);
    varint(content.len() as u64, into);
    into.extend(content);
}

fn varint(mut value: u64, into: &mut Vec<u8>) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length).to_le_bytes(), data, &masked_crc(data).to_le_bytes()].concat()
}

/// What a file holds of the epochs up to one.
struct Whole {
    /// Bytes of whole records at the front, the highest of their epochs.
    keep: usize,
    done: u64,
    /// Whether other bytes than whole records of later epochs follow.
    damaged: bool,
}

fn whole_until(bytes: &[u8], last: u64) -> Whole {
    let (mut keep, mut done, mut end) = (None, 0, 0);
    while let Some((data, next)) = read_record(bytes, end) {
        match step_of(data) {
            Some(step) if step > last => keep = keep.or(Some(end)),
            step if keep.is_none() => done = done.max(step.unwrap_or(0)),
            _ => {}
        }
        end = next;
    }
    Whole { keep: keep.unwrap_or(end), done, damaged: end < bytes.len() }
}

/// The data of the record at `at`, and where the next one begins; `None` at the end and where it is damaged.
fn read_record(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let length = bytes.get(at..at + 8)?;
    if word(at + 8)? != masked_crc(length) {
        return None;
    }
    let length = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
    let end = (at + 12).checked_add(length)?;
    let data = bytes.get(at + 12..end)?;
    (word(end)? == masked_crc(data)).then_some((data, end + 4))
}

/// The step of one of our events: the field after the wall time. The first event has none.
fn step_of(event: &[u8]) -> Option<u64> {
    let rest = event.get(9..)?;
    let (&key, digits) = rest.split_first()?;
    if key != 2 << 3 {
        return None;
    }
    let mut value = 0u64;
    for (i, &byte) in digits.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// The rotation and offset that TFRecord puts on a checksum, so that checksums of data with checksums stay good.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: a run writes a few kilobytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        // Appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// The bytes that TensorBoard's own classes give for the same events (the `--fixture` of
    /// scripts/check-tensorboard.py prints them).
    #[test]
    fn records_are_those_of_tensorboard() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let scalars = [("train/loss".to_string(), 2.25), ("learning_rate".to_string(), 0.1)];
        assert_eq!(hex(&record(&first_event(1.5))), FIRST);
        assert_eq!(hex(&record(&scalars_event(1_700_000_000.25, 300, &scalars))), SCALARS);
    }
    const FIRST: &str = "2400000000000000422b804d09000000000000f83f1a0d627261696e2e4576656e743a32520a0a087365636174657572\
        502a2c79";
    const SCALARS: &str = "3700000000000000e7e8ca590900001040fc54d94110ac022a290a110a0a747261696e2f6c6f7373\
        15000010400a140a0d6c6561726e696e675f7261746515cdcccc3d595fd459";

    fn metrics(epoch: u32, loss: f64) -> EpochMetrics {
        serde_json::from_value(serde_json::json!({
            "epoch": epoch, "learning_rate": 0.1, "images": 100, "train_loss": loss, "train_robust": 0.25,
            "validation_clean": null, "validation_robust": null, "attack_steps_per_sample": 10.0,
            "outlier_share": null, "boundary_share": null, "robust_share": null, "co_pgd5_accuracy": null,
            "co_detected": null, "best": true, "seconds_attack": 1.0, "seconds_train": 1.0, "seconds_evaluate": 0.0,
            "images_per_second": 50.0
        }))
        .unwrap()
    }

    /// Wall time, step and losses of the file's records.
    fn steps(path: &Path) -> Vec<Option<u64>> {
        let bytes = fs::read(path).unwrap();
        let (mut at, mut steps) = (0, Vec::new());
        while let Some((data, next)) = read_record(&bytes, at) {
            steps.push(step_of(data));
            at = next;
        }
        assert_eq!(at, bytes.len(), "a record is damaged");
        steps
    }

    #[test]
    fn a_resumed_run_has_each_epoch_once() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::create(folder.path()).unwrap();
        synchronize(&run).unwrap();
        let found = || -> PathBuf { folder.path().join(find(run.folder()).unwrap().unwrap()) };
        let path = found();
        assert_eq!(steps(&path), [None]);
        for epoch in 1..=3 {
            run.append_metrics(&metrics(epoch, 2.0)).unwrap();
            append(&run, &metrics(epoch, 2.0)).unwrap();
        }
        let whole = fs::read(&path).unwrap();
        assert_eq!(steps(&path), [None, Some(1), Some(2), Some(3)]);

        // Back to epoch 1, then on: epochs 2 and 3 are written again, and nothing stands twice.
        run.roll_back_metrics(1).unwrap();
        synchronize(&run).unwrap();
        assert_eq!(steps(&path), [None, Some(1)]);
        assert!(whole.starts_with(&fs::read(&path).unwrap()), "the epoch that stays is left as it was");
        for epoch in 2..=3 {
            run.append_metrics(&metrics(epoch, 1.0)).unwrap();
        }
        // Killed between the two files, and in the middle of a record.
        append(&run, &metrics(2, 1.0)).unwrap();
        let mut cut = fs::read(&path).unwrap();
        cut.truncate(cut.len() - 3);
        fs::write(&path, &cut).unwrap();
        let aside = synchronize(&run).unwrap().unwrap();
        assert_eq!(steps(&path), [None, Some(1), Some(2), Some(3)]);
        assert_eq!(fs::read(&aside).unwrap(), cut);
        assert!(!aside.to_string_lossy().contains("tfevents"), "TensorBoard would read {}", aside.display());
        // Damaged from the first byte: it may be another program's, and is left as it is.
        fs::write(&path, b"nothing of ours").unwrap();
        synchronize(&run).unwrap();
        assert_eq!(steps(&found()), [None, Some(1), Some(2), Some(3)]);
        assert_eq!(fs::read(&path).unwrap(), b"nothing of ours");
        // Removed: made anew, for TensorBoard may have been cleaned up.
        fs::remove_file(found()).unwrap();
        synchronize(&run).unwrap();
        assert_eq!(steps(&found()), [None, Some(1), Some(2), Some(3)]);
    }

    /// TensorFlow ends the name of its files in the name of the host, and the first event is the same but for the writer.
    #[test]
    fn a_file_of_another_program_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::create(folder.path()).unwrap();
        let mut event = vec![1 << 3 | 1];
        event.extend(1.5f64.to_le_bytes());
        bytes_field(3, VERSION.as_bytes(), &mut event);
        let theirs = [record(&event), record(&scalars_event(2.5, 7, &[("loss".into(), 1.0)]))].concat();
        let path = folder.path().join("events.out.tfevents.0000000001.secateur");
        fs::write(&path, &theirs).unwrap();
        synchronize(&run).unwrap();
        run.append_metrics(&metrics(1, 2.0)).unwrap();
        append(&run, &metrics(1, 2.0)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), theirs);
        let ours = folder.path().join(find(run.folder()).unwrap().unwrap());
        assert_eq!(steps(&ours), [None, Some(1)]);
    }

    #[test]
    fn scalars_are_the_numbers_of_the_metrics() {
        let value = serde_json::to_value(metrics(4, 2.25)).unwrap();
        let scalars = scalars(value.as_object().unwrap());
        let value = |tag: &str| scalars.iter().find(|(name, _)| name == tag).map(|(_, value)| *value);
        assert_eq!(value("train/loss"), Some(2.25));
        assert_eq!(value("seconds/attack"), Some(1.0));
        assert_eq!(value("learning_rate"), Some(0.1));
        assert_eq!(value("epoch"), None);
        assert!(
            scalars.iter().all(|(name, _)| !name.contains("validation") && name != "best"),
            "{scalars:?}"
        );
    }
}
