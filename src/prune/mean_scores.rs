//! The mean score of each candidate over a training, which costs a few numbers a step and no pass of the network.
//!
//! EL2N and GraNd are means over trained networks in their paper (Paul et al., NeurIPS 2021); over the epochs of one run they
//! are means over its networks. A score is the larger the earlier its sample ranks.

/// Running means, one a candidate. All are f32, so that a checkpoint keeps their bits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MeanScores {
    pub means: Vec<f32>,
    /// Scores after each mean; 0 where a candidate has none yet.
    pub counts: Vec<f32>,
}

impl MeanScores {
    /// Of `len` candidates without a score.
    pub fn new(len: usize) -> Self {
        Self { means: vec![f32::INFINITY; len], counts: vec![0.0; len] }
    }

    /// Whether every candidate has a score.
    pub fn complete(&self) -> bool {
        self.counts.iter().all(|&count| count > 0.0)
    }

    /// Adds a score of the candidate at `place`. A mean without scores is infinite: such a candidate ranks first.
    pub fn add(&mut self, place: usize, score: f32) {
        let (mean, count) = (&mut self.means[place], &mut self.counts[place]);
        *count += 1.0;
        *mean = if *count == 1.0 { score } else { *mean + (score - *mean) / *count };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_those_of_the_scores_added() {
        let mut scores = MeanScores::new(2);
        for score in [3.0, 5.0, 10.0] {
            scores.add(1, score);
        }
        assert_eq!((scores.means[1], scores.counts[1]), (6.0, 3.0));
        assert!(scores.means[0].is_infinite() && !scores.complete());
        scores.add(0, -1.0);
        assert_eq!(scores.means[0], -1.0);
        assert!(scores.complete());
    }
}
