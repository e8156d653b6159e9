//! The kinds of value a recipe holds besides numbers: exact fractions, and words for absent options.

use std::fmt;

use serde::{Serialize, Serializer};

use super::section::vanishes;

/// A number that keeps the text it was written as: "8/255" stays exact and readable in every file and table.
#[derive(Clone, Debug, PartialEq)]
pub struct Fraction {
    text: String,
    value: f64,
}

impl Fraction {
    /// Parses "a/b" or a decimal number; `None` where it is neither, or not finite.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let number = |part: &str| part.trim().parse::<f64>().ok();
        let value = match text.split_once('/') {
            Some((above, below)) => number(above)? / number(below)?,
            None => number(text)?,
        };
        value.is_finite().then(|| Self { text: text.into(), value })
    }

    pub fn value(&self) -> f64 {
        self.value
    }

    /// Whether it is not zero, and its nearest f32 is.
    pub fn vanishes(&self) -> bool {
        vanishes(self.value)
    }

    /// The nearest f32.
    pub fn as_f32(&self) -> f32 {
        self.value as f32
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Fraction {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// Writes an absent limit as "all".
pub fn all<S: Serializer>(value: &Option<usize>, serializer: S) -> Result<S::Ok, S::Error> {
    or_word("all", value, serializer)
}

/// Writes an absent option as "none".
pub fn none<T: Serialize, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    or_word("none", value, serializer)
}

/// Writes an absent step size as "learning-rate".
pub fn learning_rate<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    or_word("learning-rate", value, serializer)
}

fn or_word<T: Serialize, S: Serializer>(
    word: &str,
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => value.serialize(serializer),
        None => serializer.serialize_str(word),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_exact_and_keep_their_text() {
        let eight = Fraction::parse("8/255").unwrap();
        assert_eq!(eight.as_f32(), 8.0f32 / 255.0);
        assert_eq!(eight.value(), 8.0 / 255.0);
        assert_eq!(eight.to_string(), "8/255");
        assert_eq!(Fraction::parse(" 0.031 ").unwrap().value(), 0.031);
        let vanishes = |text| Fraction::parse(text).unwrap().vanishes();
        assert_eq!(["1e-60", "1e-44", "0", "8/255"].map(vanishes), [true, false, false, false]);
        for text in ["", "8/", "/255", "8/0", "0/0", "a/b", "8/255/1", "inf", "nan", "1e999"] {
            assert_eq!(Fraction::parse(text), None, "{text}");
        }
    }
}
