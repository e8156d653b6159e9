//! What a misspelt key or name was meant to be, for the hint of an error.

use strsim::osa_distance;

/// The candidate that `word` most likely meant: at most a third of its letters to insert, delete, substitute or swap.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, best) = candidates.map(|candidate| (osa_distance(word, candidate), candidate)).min()?;
    (distance <= word.chars().count().max(3) / 3).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_and_not_strangers() {
        let keys = ["learning_rate", "momentum", "weight_decay", "epsilon"];
        let near = |word| nearest(word, keys.into_iter());
        assert_eq!(near("learning-rate"), Some("learning_rate"));
        assert_eq!(near("momentun"), Some("momentum"));
        assert_eq!(near("wieght_decay"), Some("weight_decay"));
        assert_eq!(near("alpha"), None);
        // Letters that changed places are one slip: of three letters one may differ.
        assert_eq!(nearest("sde", ["seed", "sed"].into_iter()), Some("sed"));
    }
}
