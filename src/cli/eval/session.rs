//! One call of `secateur eval`: what is finished, what runs, and where both are kept until the end.

use std::io::ErrorKind;

use anyhow::Context;
use safetensors::tensor::{Dtype, TensorView};

use super::super::{at, dump};
use crate::batch::Batch;
use crate::console::Console;
use crate::data::{IMAGE_BYTES, Images as Pictures};
use crate::engine::Engine;
use crate::evaluate::autoattack::{self, Listener, Progress, Verdict};
use crate::evaluate::state::{Finished, Images, Settings, State, StateError};
use crate::evaluate::{Outcome, Protocol, Subject};
use crate::files::{LOCK_SUFFIX, Lock, Place};
use crate::model::layers::IMAGE_SIDE;
use crate::ops::NO_CLASS;
use crate::train::interrupt::Interrupt;

pub struct Session {
    state: State,
    place: Option<Place>,
    images: Option<Images>,
    _lock: Option<Lock>,
}

/// What the name of the file of the adversarial images, next to the state, ends in.
pub const IMAGES_SUFFIX: &str = ".images";

impl Session {
    /// A new session, or the one that an earlier command left at `place`, which is locked for as long as it lasts.
    pub fn open(settings: Settings, place: Option<Place>, resume: bool) -> anyhow::Result<Self> {
        let dump = settings.dump;
        let lock = place.as_ref().map(|place| {
            place.lock().map_err(|source| match source.kind() {
                ErrorKind::ResourceBusy => {
                    StateError::InUse { path: place.path(), holder: source.to_string() }
                }
                _ => StateError::Io { path: place.with_suffix(LOCK_SUFFIX).path(), source },
            })
        });
        let lock = lock.transpose()?;
        let exists = |place: &Place| at(&place.path(), place.exists());
        let begun = place.as_ref().map(exists).transpose()?.unwrap_or(false);
        let resume = resume && begun;
        let state = match &place {
            Some(place) if resume => State::load(place, &settings)?,
            Some(place) if begun => return Err(StateError::Unfinished { path: place.path() }.into()),
            _ => State::new(settings),
        };
        let images = match &place {
            _ if !dump => None,
            None => Some(Images::in_memory()),
            Some(place) => {
                let place = place.with_suffix(IMAGES_SUFFIX);
                let path = place.path();
                let mut images = at(&path, Images::in_file(&place, resume, &state.settings))?;
                for position in state.broken() {
                    at(&path, images.get(position))?;
                }
                Some(images)
            }
        };
        Ok(Self { state, place, images, _lock: lock })
    }

    /// How an interrupted command goes on.
    pub fn hint(&self) -> Option<String> {
        let state = self.place.as_ref()?.path();
        Some(format!("the state is in {}; continue with the same command and --resume", state.display()))
    }

    pub fn settings(&self) -> &Settings {
        &self.state.settings
    }

    pub fn finished(&self) -> &[Finished] {
        &self.state.finished
    }

    /// Puts what is known where `--resume` looks for it.
    pub fn save(&self) -> Result<(), StateError> {
        self.place.as_ref().map_or(Ok(()), |place| self.state.save(place))
    }

    /// Notes the outcome of a protocol.
    pub fn finish(
        &mut self,
        protocol: &Protocol,
        outcome: Outcome,
        progress: Option<Progress>,
    ) -> Result<(), StateError> {
        self.state.running = None;
        self.state.finished.push(Finished { protocol: protocol.to_string(), outcome, progress });
        self.save()
    }

    /// Runs a protocol made of parts of AutoAttack from where it stands; `None` where the user asked to stop.
    pub fn search(
        &mut self,
        engine: &mut Engine,
        subject: Subject,
        protocol: &Protocol,
        scratch: &Batch,
        keeps: bool,
        (console, interrupt): (&Console, &Interrupt),
    ) -> anyhow::Result<Option<(Outcome, Option<Progress>)>> {
        let begun = self.state.running.take();
        let mut progress = begun.unwrap_or_else(|| Progress::new(protocol.parts(), subject.samples.len()));
        let mut judge =
            Judge { session: self, protocol, keeps, console, interrupt, shown: None, error: None };
        let ended = autoattack::run(engine, subject, &mut progress, scratch, &mut judge)?;
        if let Some(error) = judge.error {
            return Err(error);
        }
        if ended {
            return Ok(Some((progress.outcome(), Some(progress))));
        }
        self.state.running = Some(progress);
        Ok(None)
    }

    /// The adversarial images of a protocol and what the network says of them, as a safetensors file.
    ///
    /// `x_adv` (f32, N x 3 x 32 x 32: the clean image where none was found), `labels`, `clean_predictions`,
    /// `adversarial_predictions` (i64, N; -1 where a logit is not finite) and `robust` (bool, N).
    pub fn dump(&mut self, protocol: &Protocol, pictures: &Pictures) -> anyhow::Result<Vec<u8>> {
        let name = protocol.to_string();
        let finished = self.state.finished.iter().find(|finished| finished.protocol == name);
        let progress = finished.and_then(|finished| finished.progress.as_ref()).context("nothing to dump")?;
        let images = self.images.as_mut().context("no images were kept")?;
        let count = progress.verdicts.len();
        let mut x_adv = Vec::with_capacity(count * IMAGE_BYTES * 4);
        for (position, verdict) in progress.verdicts.iter().enumerate() {
            let image = match verdict {
                Verdict::BrokenBy(_) => dump::planar(&images.get(position).context("adversarial images")?),
                _ => pictures.image(position).iter().map(|byte| f32::from(*byte) / 255.0).collect(),
            };
            x_adv.extend(image.iter().flat_map(|value| value.to_le_bytes()));
        }
        let words = |words: &[u32]| -> Vec<u8> {
            let class = |word: &u32| if *word == NO_CLASS { -1 } else { i64::from(*word) };
            words.iter().flat_map(|word| class(word).to_le_bytes()).collect()
        };
        let robust: Vec<u8> =
            progress.verdicts.iter().map(|verdict| (*verdict == Verdict::Robust).into()).collect();
        let labels = words(&pictures.labels[..count]);
        let clean = words(&progress.clean_predictions);
        let adversarial = words(&progress.adversarial_predictions);
        let tensors = [
            ("x_adv", Dtype::F32, vec![count, 3, IMAGE_SIDE, IMAGE_SIDE], &x_adv),
            ("labels", Dtype::I64, vec![count], &labels),
            ("clean_predictions", Dtype::I64, vec![count], &clean),
            ("adversarial_predictions", Dtype::I64, vec![count], &adversarial),
            ("robust", Dtype::BOOL, vec![count], &robust),
        ];
        let views = tensors
            .into_iter()
            .map(|(name, dtype, shape, data)| Ok((name, TensorView::new(dtype, shape, data)?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
        Ok(safetensors::serialize(views, None)?)
    }

    /// The end: nothing is left to resume.
    pub fn close(self) -> anyhow::Result<()> {
        if let Some(place) = &self.place {
            State::remove(place)?;
            if self.images.is_some() {
                let place = place.with_suffix(IMAGES_SUFFIX);
                at(&place.path(), place.remove())?;
            }
        }
        Ok(())
    }
}

/// Saves and shows what an evaluation tells.
struct Judge<'a> {
    session: &'a mut Session,
    protocol: &'a Protocol,
    keeps: bool,
    console: &'a Console,
    interrupt: &'a Interrupt,
    /// Stage of the bar.
    shown: Option<usize>,
    error: Option<anyhow::Error>,
}

impl Judge<'_> {
    fn save(&mut self, progress: &Progress) -> anyhow::Result<()> {
        if self.session.place.is_some() {
            if let Some(images) = &mut self.session.images {
                images.sync().context("adversarial images")?;
            }
            self.session.state.running = Some(progress.clone());
            self.session.save()?;
        }
        Ok(())
    }
}

impl Listener for Judge<'_> {
    fn found(&mut self, position: usize, image: &[f32]) {
        if let (true, Some(images)) = (self.keeps, &mut self.session.images)
            && let Err(error) = images.put(position, image)
        {
            self.error = Some(anyhow::Error::from(error).context("adversarial images"));
        }
    }

    fn batch(&mut self, progress: &Progress) -> bool {
        let Some(stage) = progress.stages.last() else { return true };
        let (name, images) = (stage.part.map_or("clean", |part| part.name()), progress.verdicts.len());
        if self.shown.replace(progress.stages.len()) != Some(progress.stages.len()) {
            self.console.bar(format!("{} {name}", self.protocol), images);
        }
        self.console.at(stage.next);
        if stage.finished {
            let share = 100.0 * stage.robust as f64 / images.max(1) as f64;
            let (protocol, robust, seconds) = (self.protocol, stage.robust, stage.seconds);
            self.console.line(format!(
                "{protocol}: {robust} of {images} robust ({share:.2} %) behind {name}, {seconds:.1} s"
            ));
        }
        if self.error.is_none() {
            self.error = self.save(progress).err();
        }
        self.error.is_none() && !self.interrupt.requested()
    }
}
