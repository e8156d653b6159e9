//! `[data]`: which images train, validate and test.

use std::path::Path;

use serde::Serialize;

use super::extra::ExtraImages;
use super::numpy::MAX_IMAGES;
use super::{DataError, DataSet, GENERATED_TEST, GENERATED_TRAIN, MAX_GENERATED, SetKind, ValidationSplit};
use crate::config::{self, ConfigError, Refusal, Section, above};
use crate::names::named;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DataConfig {
    pub set: SetKind,
    /// The first N training images of the files, validation included; of the generated set, how many are made.
    #[serde(serialize_with = "config::all")]
    pub train_limit: Option<usize>,
    #[serde(serialize_with = "config::all")]
    pub test_limit: Option<usize>,
    /// Training images held out to choose the best epoch; 0 for none.
    pub validation: usize,
    /// Which images those are.
    pub validation_split: ValidationSplit,
    /// Random crop (padding 4) and horizontal flip.
    pub augment: bool,
    /// Of the crop; unused without.
    pub padding: Padding,
    /// `.npz` files of images besides those of the set, with labels: see [`ExtraImages`]. Paths are from where the program is
    /// started.
    pub extra: Vec<String>,
    /// The share of every batch that is drawn from them; unused without. An epoch keeps its number of images. No selection and no
    /// validation looks at them.
    pub extra_share: f64,
}

named! {
    /// What lies around an image that is cropped.
    pub enum Padding {
        /// Black, as torchvision's `RandomCrop(32, padding=4)`.
        Zero = "zero",
        /// The image mirrored at its outermost pixels, which are not repeated: `numpy.pad` and PyTorch's "reflect".
        Reflect = "reflect",
    }
}

impl DataConfig {
    pub(crate) fn read(mut section: Section) -> Result<Self, ConfigError> {
        let set: SetKind = section.name("set", None)?;
        // "all" of the endless generated set is a modest number.
        let (train, test) = match set {
            SetKind::Generated => (Some(GENERATED_TRAIN), Some(GENERATED_TEST)),
            SetKind::Cifar10 | SetKind::Cifar100 => (None, None),
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
            extra: section.texts("extra", &[])?,
            extra_share: section.number("extra_share", above(0.0, 0.99), Some(0.7))?,
        };
        section.finish(data, Self::validate)
    }

    /// Refuses more images than the set has, and a validation set that leaves none to train on.
    pub fn validate(&self) -> Result<(), Refusal> {
        let sizes = self.set.sizes();
        let limits =
            [("train_limit", self.train_limit, sizes.train), ("test_limit", self.test_limit, sizes.test)];
        for (key, limit, all) in limits {
            if let Some(limit) = limit.filter(|&limit| limit > all) {
                return Err(Refusal::new(key, limit, format!("at most the {all} images of {}", self.set)));
            }
        }
        let images = self.train_limit.unwrap_or(sizes.train);
        if self.validation >= images {
            let expected = format!("fewer than the {images} training images it is taken from");
            return Err(Refusal::new("validation", self.validation, expected));
        }
        Ok(())
    }

    /// All images to train on: those of the set, from what is at `path` where it has files, and the extra ones.
    ///
    /// # Errors
    /// Those of [`DataSet::open`] and of [`ExtraImages::open`]; [`DataError::TooManyExtra`].
    pub fn open(&self, path: Option<&Path>) -> Result<DataSet, DataError> {
        let mut data = self.open_set(path)?;
        let extra = self.extra.iter().map(|path| ExtraImages::open(Path::new(path), data.classes));
        data.extra = extra.collect::<Result<_, _>>()?;
        match data.extra_count() {
            count if count as u64 > MAX_IMAGES => Err(DataError::TooManyExtra { count, most: MAX_IMAGES }),
            _ => Ok(data),
        }
    }

    /// The images of the set alone, from what is at `path` where it has files.
    ///
    /// # Errors
    /// Those of [`DataSet::open`].
    pub fn open_set(&self, path: Option<&Path>) -> Result<DataSet, DataError> {
        DataSet::open(self.set, path, self.train_limit, self.test_limit)
    }

    /// Training images that are not held out.
    pub fn training_samples(&self) -> usize {
        self.train_limit.unwrap_or(self.set.sizes().train) - self.validation
    }
}
