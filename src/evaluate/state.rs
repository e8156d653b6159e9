//! What an interrupted evaluation leaves on disk: the outcomes of finished protocols, the progress of the running one, and
//! the adversarial images found so far where they are asked for.
//!
//! The state is one JSON file, replaced as a whole behind every batch; it names the settings that it belongs to, and another
//! evaluation is refused. Images lie in a file of their own beside it, each at its position, and are on disk before the state
//! that speaks of them. Called by `secateur eval`; checked by `tests/autoattack.rs`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Outcome;
use super::autoattack::Progress;
use crate::files::{Existing, How, Place, limit};
use crate::model::layers::IMAGE_LEN;

/// Of the format; another one is refused.
const VERSION: u32 = 1;

/// Everything on which a verdict depends, and what is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub weights_sha256: String,
    pub data: String,
    pub split: String,
    pub samples: usize,
    /// As it was given, "8/255".
    pub epsilon: String,
    pub seed: u64,
    pub protocols: Vec<String>,
    /// `cpu`, `cuda` or `emulated`: they round differently.
    pub device: String,
    /// Whether adversarial images are kept for a dump.
    pub dump: bool,
}

/// A protocol that has come to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finished {
    pub protocol: String,
    pub outcome: Outcome,
    /// For parts of AutoAttack.
    pub progress: Option<Progress>,
}

/// The state file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    pub settings: Settings,
    pub finished: Vec<Finished>,
    /// Of the protocol behind the finished ones.
    pub running: Option<Progress>,
}

/// Why a state is refused.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: not a state of an evaluation: {reason}", path.display())]
    Format { path: PathBuf, reason: String },
    #[error("{}: an evaluation with {name} {met}, this command asks for {wanted}", path.display())]
    Settings { path: PathBuf, name: String, met: String, wanted: String },
    #[error("{}: an unfinished evaluation; continue it with --resume, or delete the file", path.display())]
    Unfinished { path: PathBuf },
    #[error("{}: another evaluation works with it: {holder}; wait until it has ended, or name another --state", path.display())]
    InUse { path: PathBuf, holder: String },
    #[error("{}: no state to resume from", path.display())]
    Missing { path: PathBuf },
}

impl State {
    pub fn new(settings: Settings) -> Self {
        Self { version: VERSION, settings, finished: Vec::new(), running: None }
    }

    /// The state at `place` if it belongs to `settings`.
    pub fn load(place: impl Into<Place>, settings: &Settings) -> Result<Self, StateError> {
        let place = place.into();
        let path = place.path();
        let bytes = match place.read(limit::JSON) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StateError::Missing { path });
            }
            Err(source) => return Err(StateError::Io { path, source }),
            Ok(bytes) => bytes,
        };
        let format = |reason: String| StateError::Format { path: path.clone(), reason };
        let state: Self = serde_json::from_slice(&bytes).map_err(|error| format(error.to_string()))?;
        if state.version != VERSION {
            return Err(format(format!("version {}, expected {VERSION}", state.version)));
        }
        let fields = |settings: &Settings| match serde_json::to_value(settings) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        };
        let (met, wanted) = (fields(&state.settings), fields(settings));
        if let Some(name) = wanted.keys().find(|name| met.get(*name) != wanted.get(*name)) {
            let text =
                |value: Option<&serde_json::Value>| value.map_or("nothing".into(), |value| value.to_string());
            return Err(StateError::Settings {
                path: path.clone(),
                name: name.replace('_', " "),
                met: text(met.get(name)),
                wanted: text(wanted.get(name)),
            });
        }
        let outcomes = state.finished.iter().map(|finished| finished.outcome.withstood.len());
        let progress =
            state.finished.iter().filter_map(|finished| finished.progress.as_ref()).chain(&state.running);
        let progress = progress.flat_map(|progress| {
            [
                progress.verdicts.len(),
                progress.clean_predictions.len(),
                progress.adversarial_predictions.len(),
            ]
        });
        match outcomes.chain(progress).find(|met| *met != settings.samples) {
            Some(met) => Err(format(format!("verdicts on {met} images, expected {}", settings.samples))),
            None => Ok(state),
        }
    }

    /// Replaces the file at `place`.
    pub fn save(&self, place: impl Into<Place>) -> Result<(), StateError> {
        let place = place.into();
        let bytes = serde_json::to_vec(self)
            .map_err(|error| StateError::Format { path: place.path(), reason: error.to_string() })?;
        let written = place.write(&bytes, Existing::Replace);
        written.map_err(|source| StateError::Io { path: place.path(), source })
    }
}

/// Adversarial images by position, in memory or in a file.
pub enum Images {
    Memory(BTreeMap<usize, Vec<f32>>),
    File(File),
}

impl Images {
    pub fn in_memory() -> Self {
        Self::Memory(BTreeMap::new())
    }

    /// The file at `place`, with what it holds if `keep`, else empty.
    pub fn in_file(place: &Place, keep: bool) -> io::Result<Self> {
        place.open(if keep { How::Update } else { How::Empty }).map(Self::File)
    }

    /// Keeps the image (32 x 32 x 3) at `position`.
    pub fn put(&mut self, position: usize, image: &[f32]) -> io::Result<()> {
        match self {
            Self::Memory(images) => {
                images.insert(position, image.to_vec());
                Ok(())
            }
            Self::File(file) => {
                file.seek(SeekFrom::Start(offset(position)))?;
                file.write_all(&image.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
            }
        }
    }

    /// Behind this, what was put is on disk.
    pub fn sync(&mut self) -> io::Result<()> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::File(file) => file.sync_data(),
        }
    }

    /// The image at `position`, which was put before.
    pub fn get(&mut self, position: usize) -> io::Result<Vec<f32>> {
        match self {
            Self::Memory(images) => {
                images.get(&position).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
            }
            Self::File(file) => {
                let mut bytes = vec![0; IMAGE_LEN * 4];
                file.seek(SeekFrom::Start(offset(position)))?;
                file.read_exact(&mut bytes)?;
                Ok(bytes.as_chunks().0.iter().map(|&word| f32::from_le_bytes(word)).collect())
            }
        }
    }
}

fn offset(position: usize) -> u64 {
    position as u64 * IMAGE_LEN as u64 * 4
}

/// Flags as a word of 0 and 1.
pub mod flags {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn text(flags: &[bool]) -> String {
        flags.iter().map(|flag| if *flag { '1' } else { '0' }).collect()
    }

    pub fn serialize<S: Serializer>(flags: &[bool], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&text(flags))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<bool>, D::Error> {
        let flag = |letter| match letter {
            '0' => Ok(false),
            '1' => Ok(true),
            _ => Err(D::Error::custom(format!("flag '{letter}', expected 0 or 1"))),
        };
        String::deserialize(deserializer)?.chars().map(flag).collect()
    }
}

/// Verdicts as a word, one letter an image.
pub mod letters {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::evaluate::Part;
    use crate::evaluate::autoattack::Verdict;

    /// Every verdict, its letter and its name.
    pub const ALL: [(Verdict, char, &str); 6] = [
        (Verdict::Robust, 'r', "robust"),
        (Verdict::Misclassified, 'm', "misclassified"),
        (Verdict::BrokenBy(Part::ApgdCe), 'c', "apgd-ce"),
        (Verdict::BrokenBy(Part::ApgdT), 't', "apgd-t"),
        (Verdict::BrokenBy(Part::FabT), 'f', "fab-t"),
        (Verdict::BrokenBy(Part::Square), 's', "square"),
    ];

    pub fn text(verdicts: &[Verdict]) -> String {
        let letter = |verdict: &Verdict| {
            ALL.iter().find(|(of, ..)| of == verdict).map_or('?', |(_, letter, _)| *letter)
        };
        verdicts.iter().map(letter).collect()
    }

    pub fn serialize<S: Serializer>(verdicts: &[Verdict], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&text(verdicts))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Verdict>, D::Error> {
        let verdict = |letter| {
            let found = ALL.iter().find(|(_, of, _)| *of == letter).map(|(verdict, ..)| *verdict);
            found.ok_or_else(|| D::Error::custom(format!("verdict '{letter}'")))
        };
        String::deserialize(deserializer)?.chars().map(verdict).collect()
    }
}
