//! What a misspelt key or name was meant to be, for the hint of an error.
//!
//! Checked by its own tests. Called by the reader (keys) and by the list of built-in recipes (names).

/// The candidate that `word` most likely meant: at most a third of its letters to change.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, best) = candidates.map(|candidate| (edits(word, candidate), candidate)).min()?;
    (distance <= word.chars().count().max(3) / 3).then_some(best)
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &to) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
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
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
    }
}
