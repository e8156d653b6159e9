//! One call of `secateur eval`: what is finished, what runs, and where both are kept until the end.

use std::path::{Path, PathBuf};

use anyhow::Context;
use safetensors::tensor::{Dtype, TensorView};

use super::super::{at, dump};
use super::Args;
use crate::batch::Batch;
use crate::console::Console;
use crate::data::{IMAGE_BYTES, Images as Pictures};
use crate::engine::{Engine, NO_CLASS};
use crate::evaluate::autoattack::{self, Listener, Progress, Verdict};
use crate::evaluate::state::{Finished, Images, Settings, State, StateError};
use crate::evaluate::{Outcome, Protocol, Subject};
use crate::model::layers::IMAGE_SIDE;
use crate::train::interrupt::Interrupt;

pub struct Session {
    state: State,
    path: Option<PathBuf>,
    images: Option<Images>,
}

/// The file of the adversarial images, beside the state.
fn images_path(state: &Path) -> PathBuf {
    let mut name = state.to_path_buf().into_os_string();
    name.push(".images");
    name.into()
}

/// How an interrupted command goes on.
pub fn hint(args: &Args) -> Option<String> {
    let state = args.state().ok().flatten().filter(|state| state.exists())?;
    Some(format!("the state is in {}; continue with the same command and --resume", state.display()))
}

impl Session {
    /// A new session, or the one that an earlier command left at `path`.
    pub fn open(settings: Settings, path: Option<PathBuf>, resume: bool) -> anyhow::Result<Self> {
        let dump = settings.dump;
        let resume = resume && path.as_ref().is_some_and(|path| path.exists());
        let state = match &path {
            Some(path) if resume => State::load(path, &settings)?,
            Some(path) if path.exists() => return Err(StateError::Unfinished { path: path.clone() }.into()),
            _ => State::new(settings),
        };
        let images = match &path {
            _ if !dump => None,
            None => Some(Images::in_memory()),
            Some(path) => {
                let path = images_path(path);
                Some(at(&path, Images::in_file(&path, resume))?)
            }
        };
        Ok(Self { state, path, images })
    }

    pub fn settings(&self) -> &Settings {
        &self.state.settings
    }

    pub fn finished(&self) -> &[Finished] {
        &self.state.finished
    }

    fn save(&self) -> Result<(), StateError> {
        self.path.as_ref().map_or(Ok(()), |path| self.state.save(path))
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
        engine: &mut dyn Engine,
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
        Ok(ended.then(|| (progress.outcome(), Some(progress))))
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
        if let Some(path) = &self.path {
            // Not there where nothing was ever saved.
            if path.exists() {
                at(path, std::fs::remove_file(path))?;
            }
            if self.images.is_some() {
                let path = images_path(path);
                at(&path, std::fs::remove_file(&path))?;
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
        if self.session.path.is_some() {
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
