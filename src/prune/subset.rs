//! A weighted subset of the training samples.

use super::{PruneError, Result};

/// What a selection chose.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Subset {
    /// Positions in the image set, ascending, none twice.
    pub samples: Vec<u32>,
    /// A factor on the loss of each; training minimises the plain mean of weight times loss over a minibatch.
    pub weights: Vec<f32>,
    /// `scale * sum of weight * gradient` estimates the sum over all candidates; `None`: the scale at which the weights sum
    /// to the number of candidates.
    pub scale: Option<f64>,
    /// `|scale * sum_S w g - sum_D g| / |sum_D g|` of the last-layer gradients that the selection was made from, where it
    /// had them: see [`super::residual`].
    pub residual: Option<f64>,
    /// What the pursuits left of their own targets after each step, as shares of the targets' norm; empty for other
    /// methods. Per class the targets of a trained network nearly cancel in the sum, so `residual` is 4 to 5 times larger.
    pub residuals: Vec<f64>,
}

impl Subset {
    /// All of `samples` with weight 1.
    pub fn uniform(mut samples: Vec<u32>) -> Self {
        samples.sort_unstable();
        Self { weights: vec![1.0; samples.len()], samples, ..Self::default() }
    }

    /// Samples with the weights of a sum over all candidates, divided by their mean for training: a minibatch then has the
    /// step length of unweighted training. A sample with weight 0 is left out.
    ///
    /// # Errors
    /// [`PruneError::Invalid`] for a negative or non-finite weight.
    pub fn normalised(chosen: Vec<(u32, f64)>) -> Result<Self> {
        let chosen = checked(chosen)?;
        let mean = chosen.iter().map(|(_, weight)| weight).sum::<f64>() / chosen.len().max(1) as f64;
        Ok(Self::of(&chosen, mean))
    }

    /// Samples with the weights of a sum over all candidates, as they are: each minibatch takes a longer step, and the
    /// fewer steps go as far as those on all samples. A sample with weight 0 is left out.
    ///
    /// # Errors
    /// [`PruneError::Invalid`] for a negative or non-finite weight.
    pub fn unnormalised(chosen: Vec<(u32, f64)>) -> Result<Self> {
        Ok(Self::of(&checked(chosen)?, 1.0))
    }

    /// Weights divided by `scale`.
    fn of(chosen: &[(u32, f64)], scale: f64) -> Self {
        Self {
            samples: chosen.iter().map(|&(sample, _)| sample).collect(),
            weights: chosen.iter().map(|&(_, weight)| (weight / scale) as f32).collect(),
            scale: Some(scale),
            ..Self::default()
        }
    }

    /// The same with further `samples` of weight 1, none of which it holds; the residual was that of another gradient.
    pub fn with(self, samples: &[u32]) -> Self {
        let own = self.samples.iter().copied().zip(self.weights.iter().copied());
        let mut all: Vec<(u32, f32)> = own.chain(samples.iter().map(|&sample| (sample, 1.0))).collect();
        all.sort_unstable_by_key(|&(sample, _)| sample);
        let (samples, weights) = all.into_iter().unzip();
        Self { samples, weights, scale: None, residual: None, residuals: self.residuals }
    }

    pub fn len(&self) -> usize {
        self.samples.len()
    }

    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }
}

/// The samples with a weight above 0, ascending.
fn checked(mut chosen: Vec<(u32, f64)>) -> Result<Vec<(u32, f64)>> {
    if let Some((sample, weight)) = chosen.iter().find(|(_, weight)| !(weight.is_finite() && *weight >= 0.0))
    {
        return Err(PruneError::Invalid(format!(
            "training image {sample}: weight {weight}, expected a finite number, 0 at least"
        )));
    }
    chosen.retain(|&(_, weight)| weight > 0.0);
    chosen.sort_unstable_by_key(|&(sample, _)| sample);
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalised_weights_have_mean_one_and_samples_ascend() {
        let subset = Subset::normalised(vec![(9, 2.0), (4, 0.0), (1, 6.0)]).unwrap();
        assert_eq!(subset.samples, [1, 9]);
        assert_eq!((&*subset.weights, subset.scale), (&[1.5, 0.5][..], Some(4.0)));
        assert_eq!(Subset::uniform(vec![3, 1, 2]).samples, [1, 2, 3]);
        let mixed = subset.with(&[5, 0]);
        assert_eq!((mixed.samples, mixed.weights), (vec![0, 1, 5, 9], vec![1.0, 1.5, 1.0, 0.5]));
        assert_eq!((mixed.scale, mixed.residual), (None, None));
        assert!(Subset::normalised(Vec::new()).unwrap().is_empty());
    }

    #[test]
    fn other_weights_stay_as_they_are() {
        let subset = Subset::unnormalised(vec![(9, 2.0), (4, 0.0), (1, 1.0)]).unwrap();
        assert_eq!((subset.samples, subset.weights), (vec![1, 9], vec![1.0, 2.0]));
        assert_eq!(subset.scale, Some(1.0));
    }

    #[test]
    fn bad_weights_are_named() {
        for weight in [-1.0, f64::NAN, f64::INFINITY] {
            for error in [Subset::normalised(vec![(7, weight)]), Subset::unnormalised(vec![(7, weight)])] {
                let error = error.unwrap_err().to_string();
                assert!(error.contains("image 7") && error.contains(&weight.to_string()), "{error}");
            }
        }
    }
}
