//! What an interrupted evaluation leaves on disk: the outcomes of finished protocols and the progress of the running one.
//!
//! The state is a file of two lines of JSON, the SHA-256 of the second one first. It is replaced as a whole after every batch, names
//! the settings that it belongs to, and is refused by another evaluation.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Outcome;
use super::autoattack::{ImageResult, Progress};
use crate::digest::sha256;
use crate::files::{Existing, Place, if_there, limit};
use crate::progress::{Event, ProgressSink};

/// Of the format; another one is refused.
const VERSION: u32 = 2;

/// Everything on which a result depends, and what is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub weights_sha256: String,
    pub data: String,
    pub split: String,
    pub samples: usize,
    /// Of those images and their labels: [`crate::data::Images::sha256`].
    pub images_sha256: String,
    /// As it was given, "8/255".
    pub epsilon: String,
    pub seed: u64,
    pub protocols: Vec<String>,
    /// [`device_name`].
    pub device: String,
    /// Of this program.
    pub build: String,
    /// Whether adversarial images are kept for a dump.
    pub dump: bool,
}

/// What of a device decides how it rounds: its kind and the code that runs on it.
pub fn device_name(kind: &str, code: &str) -> String {
    format!("{kind} ({code})")
}

/// The first line of the file.
#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    /// Of the second line.
    sha256: String,
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

/// What the state file holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub settings: Settings,
    pub finished: Vec<Finished>,
    /// Of the protocol after the finished ones.
    pub running: Option<Progress>,
}

/// Why a state is refused.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: not a state of an evaluation: {reason}", path.display())]
    Format { path: PathBuf, reason: String },
    #[error("{}: an evaluation with {name} {actual}, this command asks for {expected}", path.display())]
    Settings { path: PathBuf, name: String, actual: String, expected: String },
    #[error("{}: an unfinished evaluation; continue it with --resume, or delete the file", path.display())]
    Unfinished { path: PathBuf },
    #[error("{}: another evaluation works with it: {holder}; wait until it has ended, or name another --state", path.display())]
    InUse { path: PathBuf, holder: String },
    #[error("{}: no state to resume from", path.display())]
    Missing { path: PathBuf },
}

impl State {
    pub fn new(settings: Settings) -> Self {
        Self { settings, finished: Vec::new(), running: None }
    }

    /// The state at `place` if it belongs to `settings`.
    pub fn load(place: impl Into<Place>, settings: &Settings) -> Result<Self, StateError> {
        let place = place.into();
        let path = place.path();
        let bytes = if_there(place.read(limit::JSON));
        let bytes = bytes.map_err(|source| StateError::Io { path: path.clone(), source })?;
        let Some(bytes) = bytes else { return Err(StateError::Missing { path }) };
        let format = |reason: String| StateError::Format { path: path.clone(), reason };
        let (header, state) =
            bytes.split_at(bytes.iter().position(|&byte| byte == b'\n').map_or(0, |end| end + 1));
        let header: Header = serde_json::from_slice(header).map_err(|error| format(error.to_string()))?;
        if header.version != VERSION {
            return Err(format(format!("version {}, expected {VERSION}", header.version)));
        }
        let digest = sha256(state);
        if digest != header.sha256 {
            return Err(format(format!("SHA-256 {digest}, expected {}: it is damaged", header.sha256)));
        }
        let state: Self = serde_json::from_slice(state).map_err(|error| format(error.to_string()))?;
        let fields = |settings: &Settings| match serde_json::to_value(settings) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        };
        let (actual, expected) = (fields(&state.settings), fields(settings));
        // Other digests follow from other settings: these say more.
        let (digests, others): (Vec<_>, Vec<_>) = expected.keys().partition(|name| name.ends_with("sha256"));
        let mut names = others.into_iter().chain(digests);
        if let Some(name) = names.find(|name| actual.get(*name) != expected.get(*name)) {
            let text =
                |value: Option<&serde_json::Value>| value.map_or("nothing".into(), |value| value.to_string());
            return Err(StateError::Settings {
                path: path.clone(),
                name: name.replace('_', " "),
                actual: text(actual.get(name)),
                expected: text(expected.get(name)),
            });
        }
        let protocols = state.finished.iter().map(|finished| &finished.protocol);
        if !settings.protocols.iter().take(state.finished.len()).eq(protocols) {
            return Err(format("its finished protocols are not the first of the command's".into()));
        }
        let outcomes = state.finished.iter().map(|finished| finished.outcome.robust.len());
        let progress =
            state.finished.iter().filter_map(|finished| finished.progress.as_ref()).chain(&state.running);
        let progress = progress.flat_map(|progress| {
            [progress.results.len(), progress.clean_predictions.len(), progress.adversarial_predictions.len()]
        });
        match outcomes.chain(progress).find(|images| *images != settings.samples) {
            Some(images) => Err(format(format!("results on {images} images, expected {}", settings.samples))),
            None => Ok(state),
        }
    }

    /// [`State::load`], `None` where the file is missing or of other settings, or damaged, which is a warning.
    ///
    /// # Errors
    /// [`StateError::Io`] for a file that cannot be read: it may be whole.
    pub fn load_if_same(
        place: &Place,
        settings: &Settings,
        progress: &dyn ProgressSink,
    ) -> Result<Option<Self>, StateError> {
        match Self::load(place, settings) {
            Ok(state) => Ok(Some(state)),
            Err(StateError::Missing { .. } | StateError::Settings { .. }) => Ok(None),
            Err(error @ StateError::Format { .. }) => {
                progress.event(Event::Warning(&format!("made again: {error}")));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Replaces the file at `place`.
    pub fn save(&self, place: impl Into<Place>) -> Result<(), StateError> {
        let place = place.into();
        let json = |value: serde_json::Result<Vec<u8>>| {
            value.map_err(|error| StateError::Format { path: place.path(), reason: error.to_string() })
        };
        let state = json(serde_json::to_vec(self))?;
        let mut bytes = json(serde_json::to_vec(&Header { version: VERSION, sha256: sha256(&state) }))?;
        bytes.push(b'\n');
        bytes.extend(state);
        let written = place.write(&bytes, Existing::Replace);
        written.map_err(|source| StateError::Io { path: place.path(), source })
    }

    /// Removes the file at `place`, where there is one.
    pub fn remove(place: &Place) -> Result<(), StateError> {
        let removed = if_there(place.remove());
        removed.map(drop).map_err(|source| StateError::Io { path: place.path(), source })
    }

    /// Positions of images for which an adversarial image was found, by any protocol.
    pub fn broken(&self) -> impl Iterator<Item = usize> + '_ {
        let finished = self.finished.iter().filter_map(|finished| finished.progress.as_ref());
        finished.chain(&self.running).flat_map(|progress| {
            let results = progress.results.iter().enumerate();
            results
                .filter(|(_, result)| matches!(result, ImageResult::BrokenBy(_)))
                .map(|(position, _)| position)
        })
    }
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

/// Results as a word, one letter an image.
pub mod letters {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::evaluate::Part;
    use crate::evaluate::autoattack::ImageResult;

    /// Every result, its letter and its name.
    pub const ALL: [(ImageResult, char, &str); 6] = [
        (ImageResult::Robust, 'r', "robust"),
        (ImageResult::Misclassified, 'm', "misclassified"),
        (ImageResult::BrokenBy(Part::ApgdCe), 'c', "apgd-ce"),
        (ImageResult::BrokenBy(Part::ApgdT), 't', "apgd-t"),
        (ImageResult::BrokenBy(Part::FabT), 'f', "fab-t"),
        (ImageResult::BrokenBy(Part::Square), 's', "square"),
    ];

    pub fn text(results: &[ImageResult]) -> String {
        let letter = |result: &ImageResult| {
            ALL.iter().find(|(of, ..)| of == result).map_or('?', |(_, letter, _)| *letter)
        };
        results.iter().map(letter).collect()
    }

    pub fn serialize<S: Serializer>(results: &[ImageResult], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&text(results))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ImageResult>, D::Error> {
        let result = |letter| {
            let found = ALL.iter().find(|(_, of, _)| *of == letter).map(|(result, ..)| *result);
            found.ok_or_else(|| D::Error::custom(format!("result '{letter}'")))
        };
        String::deserialize(deserializer)?.chars().map(result).collect()
    }
}
