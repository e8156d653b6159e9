//! Which samples train, which validate, and in what order an epoch visits them: pure functions of the seed.
//!
//! A sample's key is 64 bits of Philox; sorting by key shuffles. The key depends on the sample alone and not on which
//! others take part, so a subset is visited in the order it has within the whole.

use std::ops::Range;

use super::{DataError, Images};
use crate::names::named;
use crate::philox::{Key, Purpose};

/// Steps of `Purpose::Order`, so that no two uses share a number.
const EPOCH_STEP: u32 = 0;
const SPLIT_STEP: u32 = 1;
const RESERVE_STEP: u32 = 2;
const EXTRA_STEP: u32 = 3;

named! {
    /// How validation images are taken from the training set.
    pub enum ValidationSplit {
        /// Drawn at random, the same share of each class.
        Stratified = "stratified",
        /// Drawn at random.
        Random = "random",
        /// The last of the files' order (the FastAT benchmark's choice).
        Last = "last",
    }
}

/// `samples` in the order of this epoch.
pub fn epoch_order(seed: u64, epoch: u32, samples: &[u32]) -> Vec<u32> {
    shuffled(Key { seed, purpose: Purpose::Order, epoch, step: EPOCH_STEP }, samples)
}

/// Of `n` images of a batch, how many are extra ones where these are a share of it: floor(share * n), and never all.
pub fn extra_part(share: f64, n: usize) -> usize {
    // A product such as 0.29 * 100 may lie a rounding below its whole number.
    ((share * n as f64 + 1e-9) as usize).min(n.saturating_sub(1))
}

/// The order of an epoch with a share of every batch drawn from `extra`, with replacement, after as many of `order` as fill the batch;
/// the rest of `order` is left out.
pub fn with_extra(
    order: Vec<u32>,
    extra: Range<u32>,
    share: f64,
    batch: usize,
    seed: u64,
    epoch: u32,
) -> Vec<u32> {
    if extra.is_empty() {
        return order;
    }
    let key = Key { seed, purpose: Purpose::Order, epoch, step: EXTRA_STEP };
    let count = u64::from(extra.end - extra.start);
    let draw = |slot: usize| extra.start + ((u64::from(key.block(slot as u32, 0)[0]) * count) >> 32) as u32;
    let (mut own, mut mixed) = (order.iter(), Vec::with_capacity(order.len()));
    while mixed.len() < order.len() {
        let size = batch.min(order.len() - mixed.len());
        let drawn = extra_part(share, size);
        mixed.extend(own.by_ref().take(size - drawn));
        mixed.extend((mixed.len()..mixed.len() + drawn).map(draw));
    }
    mixed
}

/// Samples by what they are for, each ascending: disjoint, and together all of the training set and the extra images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    pub train: Vec<u32>,
    /// For choosing the best epoch.
    pub validation: Vec<u32>,
    /// For selections that choose by held-out images: see [`Split::reserve`].
    pub held_out: Vec<u32>,
    /// Extra images, which follow the training set: see [`with_extra`].
    pub extra: Range<u32>,
}

impl Split {
    /// Sets a share of the validation samples apart as `held_out`, of each class in proportion: images that decide what is
    /// trained on must not choose the best epoch as well. `labels` are those of the training set.
    pub fn reserve(mut self, labels: &[u32], classes: usize, share: f64, seed: u64) -> Self {
        let mut counts = vec![0; classes];
        for &sample in &self.validation {
            counts[labels[sample as usize] as usize] += 1;
        }
        let quota = quotas(&counts, held_out(self.validation.len(), share));
        let key = Key { seed, purpose: Purpose::Order, epoch: 0, step: RESERVE_STEP };
        let mut held_out = by_quota(shuffled(key, &self.validation), quota, |sample| labels[sample as usize]);
        held_out.sort_unstable();
        self.validation.retain(|sample| held_out.binary_search(sample).is_err());
        Self { held_out, ..self }
    }
}

/// How many of `validation` samples [`Split::reserve`] sets apart.
pub fn held_out(validation: usize, share: f64) -> usize {
    (share * validation as f64).round() as usize
}

/// Takes `validation` images out of the training set.
///
/// Stratified: class c gives the share of its size, `validation * n_c / n` rounded down, and the remaining places go
/// to the classes with the largest remainders (the lower class among equals).
pub fn split(
    images: &Images,
    classes: usize,
    validation: usize,
    how: ValidationSplit,
    seed: u64,
) -> Result<Split, DataError> {
    let count = images.len();
    if validation >= count {
        return Err(DataError::Validation { expected: validation, count });
    }
    let key = Key { seed, purpose: Purpose::Order, epoch: 0, step: SPLIT_STEP };
    let all: Vec<u32> = (0..count as u32).collect();
    let mut held: Vec<u32> = match how {
        ValidationSplit::Last => all[count - validation..].to_vec(),
        ValidationSplit::Random => shuffled(key, &all)[..validation].to_vec(),
        ValidationSplit::Stratified => {
            let quota = quotas(&images.class_counts(classes), validation);
            by_quota(shuffled(key, &all), quota, |sample| images.labels[sample as usize])
        }
    };
    held.sort_unstable();
    let train = all.into_iter().filter(|sample| held.binary_search(sample).is_err()).collect();
    Ok(Split { train, validation: held, ..Split::default() })
}

/// Of each class the first of `order`, as many as its quota.
pub fn by_quota(mut order: Vec<u32>, mut quota: Vec<usize>, label: impl Fn(u32) -> u32) -> Vec<u32> {
    order.retain(|&sample| {
        let left = &mut quota[label(sample) as usize];
        let take = *left > 0;
        *left -= usize::from(take);
        take
    });
    order
}

/// Shares of `total` in proportion to `counts`, by largest remainder.
pub fn quotas(counts: &[usize], total: usize) -> Vec<usize> {
    let sum: usize = counts.iter().sum::<usize>().max(1);
    let mut quotas: Vec<usize> = counts.iter().map(|count| total * count / sum).collect();
    let mut by_remainder: Vec<usize> = (0..counts.len()).collect();
    by_remainder.sort_by_key(|&class| std::cmp::Reverse(total * counts[class] % sum));
    let left = total - quotas.iter().sum::<usize>();
    for &class in &by_remainder[..left] {
        quotas[class] += 1;
    }
    quotas
}

/// Shuffled: sorted by 64-bit keys; equal keys (once in 2^64 pairs) fall back on the sample.
pub fn shuffled(key: Key, samples: &[u32]) -> Vec<u32> {
    let mut keyed: Vec<(u64, u32)> = samples
        .iter()
        .map(|&sample| {
            let words = key.block(sample, 0);
            (u64::from(words[0]) << 32 | u64::from(words[1]), sample)
        })
        .collect();
    keyed.sort_unstable();
    keyed.into_iter().map(|(_, sample)| sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(labels: Vec<u32>) -> Images {
        Images { pixels: Vec::new(), labels }
    }

    #[test]
    fn an_epoch_visits_every_sample_once_in_its_own_order() {
        let all: Vec<u32> = (0..5000).collect();
        let first = epoch_order(9, 0, &all);
        assert_eq!(first, epoch_order(9, 0, &all));
        assert_ne!(first, epoch_order(9, 1, &all));
        assert_ne!(first, epoch_order(10, 0, &all));
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, all);
        // A fair shuffle leaves about one sample in its place, and halves average alike.
        let fixed = first.iter().zip(&all).filter(|(a, b)| a == b).count();
        assert!(fixed < 8, "{fixed} fixed points");
        let mean = first[..2500].iter().map(|&s| f64::from(s)).sum::<f64>() / 2500.0;
        // sd of the mean of half the population: 5000/sqrt(12)/sqrt(2500)/sqrt(2) = 20.4.
        assert!((mean - 2499.5).abs() < 5.0 * 20.4, "mean of the first half {mean}");
    }

    #[test]
    fn a_subset_keeps_the_order_of_the_whole() {
        let all: Vec<u32> = (0..1000).collect();
        let some: Vec<u32> = (0..1000).filter(|sample| sample % 3 == 0).collect();
        let mut whole = epoch_order(1, 5, &all);
        whole.retain(|sample| sample % 3 == 0);
        assert_eq!(whole, epoch_order(1, 5, &some));
    }

    #[test]
    fn splits_are_disjoint_complete_and_as_asked() {
        let images = labelled((0..1003).map(|i| if i % 5 == 0 { 0 } else { 1 + i % 3 }).collect());
        for how in [ValidationSplit::Stratified, ValidationSplit::Random, ValidationSplit::Last] {
            let split = split(&images, 4, 100, how, 3).unwrap();
            assert_eq!(split.validation.len(), 100, "{how}");
            let mut all = [split.train.clone(), split.validation.clone()].concat();
            assert!(split.train.is_sorted() && split.validation.is_sorted());
            all.sort_unstable();
            assert!(all.iter().copied().eq(0..1003), "{how}");
            match how {
                ValidationSplit::Last => assert_eq!(split.validation[0], 903),
                ValidationSplit::Random => assert_ne!(split.validation[0], 903),
                ValidationSplit::Stratified => {
                    let counts = images.class_counts(4);
                    let held = images_of(&images, &split.validation).class_counts(4);
                    for (class, (&n, &h)) in counts.iter().zip(&held).enumerate() {
                        let share = 100.0 * n as f64 / 1003.0;
                        assert!((h as f64 - share).abs() < 1.0, "class {class}: {h} of {n}");
                    }
                }
            }
        }
    }

    #[test]
    fn reserved_samples_are_disjoint_and_of_each_class() {
        let images = labelled((0..1000).map(|i| i % 10).collect());
        for how in [ValidationSplit::Stratified, ValidationSplit::Random, ValidationSplit::Last] {
            let whole = split(&images, 10, 100, how, 3).unwrap();
            assert!(whole.held_out.is_empty());
            for (share, count) in [(0.0, 0), (0.5, 50), (0.73, 73), (1.0, 100)] {
                let parts = whole.clone().reserve(&images.labels, 10, share, 3);
                assert_eq!(parts.held_out.len(), count);
                let mut both = [parts.held_out.clone(), parts.validation.clone()].concat();
                both.sort_unstable();
                assert_eq!((both, &parts.train), (whole.validation.clone(), &whole.train));
                let (all, held) =
                    (images_of(&images, &whole.validation), images_of(&images, &parts.held_out));
                for (n, h) in all.class_counts(10).into_iter().zip(held.class_counts(10)) {
                    assert!((h as f64 - share * n as f64).abs() < 1.0, "{how}, {share}: {h} of {n}");
                }
            }
        }
    }

    fn images_of(images: &Images, samples: &[u32]) -> Images {
        labelled(samples.iter().map(|&sample| images.labels[sample as usize]).collect())
    }

    #[test]
    fn every_batch_has_its_share_of_extra_images() {
        let (samples, extra) = ((0..1003).collect::<Vec<u32>>(), 2000..2400);
        let order = epoch_order(7, 3, &samples);
        let mixed = with_extra(order.clone(), extra.clone(), 0.7, 50, 7, 3);
        assert_eq!(mixed.len(), 1003);
        let mut own: Vec<u32> = Vec::new();
        for batch in mixed.chunks(50) {
            let (first, drawn) = batch.split_at(batch.len() - extra_part(0.7, batch.len()));
            own.extend(first);
            assert!(drawn.iter().all(|sample| extra.contains(sample)));
            assert_eq!(drawn.len(), if batch.len() == 50 { 35 } else { 2 });
        }
        assert_eq!(own, order[..own.len()]);
        // 702 draws of 400: each is expected 1.755 times, and 1 - exp(-1.755) = 83 % of them come.
        let mut drawn: Vec<u32> = mixed.iter().copied().filter(|sample| *sample >= 2000).collect();
        let other = with_extra(order.clone(), extra.clone(), 0.7, 50, 7, 4);
        assert!(drawn.iter().ne(other.iter().filter(|sample| **sample >= 2000)));
        assert_eq!(drawn.len(), 702);
        drawn.sort_unstable();
        drawn.dedup();
        assert!((300..365).contains(&drawn.len()), "{} of 400 drawn", drawn.len());
        assert_eq!(with_extra(order.clone(), 0..0, 0.7, 50, 7, 3), order);
        assert_eq!(
            [(0.29, 100), (0.99, 10), (0.7, 512), (0.7, 1)].map(|(s, n)| extra_part(s, n)),
            [29, 9, 358, 0]
        );
    }

    #[test]
    fn too_many_validation_images_are_refused() {
        let error = split(&labelled(vec![0; 10]), 1, 10, ValidationSplit::Random, 0).unwrap_err();
        assert_eq!(error.to_string(), "10 validation images, expected fewer than the 10 training images");
    }
}
