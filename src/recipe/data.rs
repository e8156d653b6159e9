//! `[data]`: which images train, validate and test. The sets themselves are `data`'s.

use std::path::Path;

use serde::Serialize;

use super::reader::Section;
use super::{RecipeError, value};
use crate::data::{
    DataError, DataSet, GENERATED_TEST, GENERATED_TRAIN, MAX_GENERATED, SetKind, ValidationSplit,
};
use crate::engine::{Augment, Padding};

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Data {
    pub set: SetKind,
    /// The first so many training images of the files, validation included; of the generated set, how many are made.
    #[serde(serialize_with = "value::all")]
    pub train_limit: Option<usize>,
    #[serde(serialize_with = "value::all")]
    pub test_limit: Option<usize>,
    /// Training images held out to choose the best epoch; 0 for none.
    pub validation: usize,
    /// Which images those are.
    pub validation_split: ValidationSplit,
    /// Random crop (padding 4) and horizontal flip.
    pub augment: bool,
    /// Of the crop; unused without.
    pub padding: Padding,
}

impl Data {
    pub(super) fn read(mut section: Section) -> Result<Self, RecipeError> {
        let set: SetKind = section.name("set", None)?;
        // "all" of the endless generated set is a modest number.
        let (train, test) = match set {
            SetKind::Generated => (Some(GENERATED_TRAIN), Some(GENERATED_TEST)),
            _ => (None, None),
        };
        let count = 1..=MAX_GENERATED;
        let data = Self {
            set,
            train_limit: section.integer_or("train_limit", "all", count.clone(), train)?.or(train),
            test_limit: section.integer_or("test_limit", "all", count, test)?.or(test),
            validation: section.integer("validation", 0..=1_000_000, Some(0))?,
            validation_split: section.name("validation_split", Some(ValidationSplit::Stratified))?,
            augment: section.boolean("augment", true)?,
            padding: section.name("padding", Some(Padding::Zero))?,
        };
        section.finish()?;
        Ok(data)
    }

    /// The images, from what is at `path` where the set has files.
    ///
    /// # Errors
    /// Those of [`DataSet::open`].
    pub fn open(&self, path: Option<&Path>) -> Result<DataSet, DataError> {
        DataSet::open(self.set, path, self.train_limit, self.test_limit)
    }

    /// The augmentation of an epoch, where there is any.
    pub fn augmentation(&self, seed: u64, epoch: u32) -> Option<Augment> {
        self.augment.then_some(Augment { seed, epoch, padding: self.padding })
    }
}
