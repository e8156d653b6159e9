//! What a selection method is, in one row: its defaults, what it must know of the candidates, and its constructor.

use super::{Score, Selection, SelectionConfig};
use crate::config::Refusal;
use crate::ops::Augment;

pub struct SelectionRow {
    pub name: &'static str,
    /// The name as its paper writes it.
    pub title: &'static str,
    /// What it chooses.
    pub about: &'static str,
    pub paper: &'static str,
    pub coverage: Coverage,
    /// What it must know of the candidates: this is what a selection costs.
    pub knowledge: Knowledge,
    /// `selection.every` where a recipe leaves it out.
    pub every: usize,
    /// `selection.full_share` where a recipe leaves it out.
    pub full_share: f64,
    /// Whether the first epoch is on all samples whatever the recipe's warm start, to leave what the method knows them by.
    pub starts_whole: bool,
    /// Whether it chooses by images that are held out of training.
    pub holds_out: bool,
    /// How often each candidate is attacked and passed, where it is.
    pub draws: fn(&SelectionConfig) -> usize,
    /// Samples of its smallest choice, for minibatches of so many: 1, or a minibatch.
    pub least: fn(&SelectionConfig, usize) -> usize,
    /// Refuses values that the method cannot work with.
    pub check: fn(&SelectionConfig) -> Result<(), Refusal>,
    pub new: fn(&SelectionConfig, &Setting) -> Box<dyn Selection>,
}

impl SelectionRow {
    /// All samples; the others say in what they differ.
    pub const ALL: Self = Self {
        name: "",
        title: "",
        about: "",
        paper: "",
        coverage: Coverage::All,
        knowledge: Knowledge::Nothing,
        every: 0,
        full_share: 0.0,
        starts_whole: false,
        holds_out: false,
        draws: |_| 1,
        least: |_, _| 1,
        check: |_| Ok(()),
        new: |_, _| Box::new(super::All),
    };
}

/// How much of the training set a run sees.
#[derive(Clone, Copy, Debug)]
pub enum Coverage {
    /// Every sample in every epoch.
    All,
    /// Every sample, for `selection.fraction` of the epochs.
    FewerEpochs,
    /// `selection.fraction` of the samples.
    Fraction,
    /// As many as the method decides.
    Own {
        /// The share of the samples that is expected before a run has told ...
        share: fn(&SelectionConfig) -> f64,
        /// ... and what that takes for granted, in words.
        assumes: fn() -> String,
    },
}

/// What a method must know of each candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    Nothing,
    /// Its last adversarial loss, which training leaves; before there is one, that of an attack.
    LastLoss,
    /// A score of the last layer, which training leaves too; where that is not wanted or not there yet, that of an attack.
    LastLayerScore(Score),
    /// The norm of its input gradient.
    InputGradient,
    /// The gradient of its last layer on an attack with the present weights.
    LastLayerGradient,
}

/// Passes that one selection makes for each candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CandidatePasses {
    None,
    /// Forward and backward of the clean image.
    InputGradient,
    /// The training attack, and the forward passes of the objective.
    Attack,
}

/// What of a run a method works with, besides its own configuration.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Images of a minibatch.
    pub batch: usize,
    /// The epoch of the first selection, counted from 0.
    pub first_selection: u32,
    /// Crop and flip of the training images, of whatever epoch.
    pub augment: Option<Augment>,
    /// The peak of the schedule.
    pub learning_rate: f64,
}
