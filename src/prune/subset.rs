//! A weighted subset of the training samples. Checked by its own tests.

use super::PruneError;

/// What a selection chose.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Subset {
    /// Positions in the image set, ascending, none twice.
    pub samples: Vec<u32>,
    /// A factor on the loss of each, their mean 1.
    pub weights: Vec<f32>,
    /// What the pursuits left of their targets after each step, as shares of the targets' norm; empty for other methods.
    pub residuals: Vec<f64>,
}

impl Subset {
    /// All of `samples` with weight 1.
    pub fn uniform(mut samples: Vec<u32>) -> Self {
        samples.sort_unstable();
        Self { weights: vec![1.0; samples.len()], samples, residuals: Vec::new() }
    }

    /// Samples with weights of any scale, which are divided by their mean. A sample with weight 0 is left out.
    ///
    /// # Errors
    /// [`PruneError::Invalid`] for a negative or non-finite weight.
    pub fn weighted(mut chosen: Vec<(u32, f64)>) -> Result<Self, PruneError> {
        if let Some((sample, weight)) =
            chosen.iter().find(|(_, weight)| !(weight.is_finite() && *weight >= 0.0))
        {
            return Err(PruneError::Invalid(format!(
                "training image {sample}: weight {weight}, expected a finite number, 0 at least"
            )));
        }
        chosen.retain(|&(_, weight)| weight > 0.0);
        chosen.sort_unstable_by_key(|&(sample, _)| sample);
        let mean = chosen.iter().map(|(_, weight)| weight).sum::<f64>() / chosen.len().max(1) as f64;
        Ok(Self {
            samples: chosen.iter().map(|&(sample, _)| sample).collect(),
            weights: chosen.iter().map(|&(_, weight)| (weight / mean) as f32).collect(),
            residuals: Vec::new(),
        })
    }

    /// The same with further `samples` of weight 1, none of which it holds.
    pub fn with(self, samples: &[u32]) -> Self {
        let own = self.samples.iter().copied().zip(self.weights.iter().copied());
        let mut all: Vec<(u32, f32)> = own.chain(samples.iter().map(|&sample| (sample, 1.0))).collect();
        all.sort_unstable_by_key(|&(sample, _)| sample);
        let (samples, weights) = all.into_iter().unzip();
        Self { samples, weights, ..self }
    }

    pub fn len(&self) -> usize {
        self.samples.len()
    }

    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_mean_one_and_samples_ascend() {
        let subset = Subset::weighted(vec![(9, 2.0), (4, 0.0), (1, 6.0)]).unwrap();
        assert_eq!(subset.samples, [1, 9]);
        assert_eq!(subset.weights, [1.5, 0.5]);
        assert_eq!(Subset::uniform(vec![3, 1, 2]).samples, [1, 2, 3]);
        let mixed = subset.with(&[5, 0]);
        assert_eq!((mixed.samples, mixed.weights), (vec![0, 1, 5, 9], vec![1.0, 1.5, 1.0, 0.5]));
        assert!(Subset::weighted(Vec::new()).unwrap().is_empty());
    }

    #[test]
    fn bad_weights_are_named() {
        for weight in [-1.0, f64::NAN, f64::INFINITY] {
            let error = Subset::weighted(vec![(7, weight)]).unwrap_err().to_string();
            assert!(error.contains("image 7") && error.contains(&weight.to_string()), "{error}");
        }
    }
}
