//! Reading a table of settings key by key: types, ranges and defaults, and refusals that name the key, its value and what was
//! expected.

mod section;
mod suggestion;
mod value;

pub use section::{Interval, Section, above};
pub use suggestion::nearest;
pub use value::{Fraction, all, learning_rate, none};

use std::fmt;

/// A value that does not go with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Dotted, from where it was refused.
    pub key: String,
    /// The value, as TOML.
    pub actual: String,
    pub expected: String,
}

/// Why a key is refused; `recipe` names the text it was read from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("recipe {recipe}: unknown key {key}{hint}")]
    UnknownKey { recipe: String, key: String, hint: String },
    #[error("recipe {recipe}: {refusal}")]
    Value { recipe: String, refusal: Refusal },
    #[error("recipe {recipe}: {key} is missing, expected {expected}")]
    MissingKey { recipe: String, key: String, expected: String },
}

/// Longest value quoted in a message, in characters.
const MAX_QUOTED: usize = 60;

impl Refusal {
    /// `actual` is shortened where it is too long for a message.
    pub fn new(key: impl Into<String>, actual: impl fmt::Display, expected: impl Into<String>) -> Self {
        let mut actual = actual.to_string();
        if let Some((end, _)) = actual.char_indices().nth(MAX_QUOTED) {
            actual.truncate(end);
            actual.push_str("...");
        }
        Self { key: key.into(), actual, expected: expected.into() }
    }

    /// Of a text or a name, which TOML quotes.
    pub fn of_text(key: impl Into<String>, actual: impl fmt::Display, expected: impl Into<String>) -> Self {
        Self::new(key, format!("\"{actual}\""), expected)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} = {}, expected {}", self.key, self.actual, self.expected)
    }
}
