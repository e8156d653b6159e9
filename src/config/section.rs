//! One table of a recipe, read key by key with range checks; what is left over is refused.
//!
//! Each typed getter takes its key out of the table, so that a reader's code is the list of known keys: an unknown
//! key is one that nobody took.

use std::fmt::Display;
use std::ops::{Range, RangeInclusive};

use toml::{Table, Value};

use super::{ConfigError, Fraction, Refusal, nearest};
use crate::names::Named;

/// Longest name of a recipe: file systems take 255 bytes, and a run's number follows it.
const MAX_NAME_BYTES: usize = 200;

/// Whether a number is not zero, and its nearest f32, with which the devices compute, is.
pub fn vanishes(value: f64) -> bool {
    value != 0.0 && value as f32 == 0.0
}

/// One table of a recipe, partly read.
pub struct Section {
    recipe: String,
    /// Dotted path with a trailing dot; empty at the top.
    path: String,
    table: Table,
    known: Vec<String>,
}

/// An interval of numbers, for the check and for the message.
#[derive(Clone, Copy)]
pub struct Interval {
    low: f64,
    high: f64,
    low_in: bool,
    high_in: bool,
}

/// (low, high]
pub fn above(low: f64, high: f64) -> Interval {
    Interval { low, high, low_in: false, high_in: true }
}

impl From<Range<f64>> for Interval {
    fn from(range: Range<f64>) -> Self {
        Self { low: range.start, high: range.end, low_in: true, high_in: false }
    }
}

impl From<RangeInclusive<f64>> for Interval {
    fn from(range: RangeInclusive<f64>) -> Self {
        Self { low: *range.start(), high: *range.end(), low_in: true, high_in: true }
    }
}

impl Interval {
    fn contains(self, value: f64) -> bool {
        !vanishes(value)
            && (value > self.low || (self.low_in && value == self.low))
            && (value < self.high || (self.high_in && value == self.high))
    }
}

impl Display for Interval {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let open = if self.low_in { '[' } else { '(' };
        let close = if self.high_in { ']' } else { ')' };
        write!(f, "{open}{}, {}{close}", self.low, self.high)
    }
}

impl Section {
    /// The top of a recipe; `recipe` stands in messages.
    pub fn root(recipe: &str, table: Table) -> Self {
        Self { recipe: recipe.into(), path: String::new(), table, known: Vec::new() }
    }

    /// The table `key`, empty where it is absent.
    pub fn section(&mut self, key: &str) -> Result<Section, ConfigError> {
        let table = match self.take(key) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(other) => return Err(self.refuse(key, &other, format!("a section [{}{key}]", self.path))),
        };
        Ok(self.below(key, table))
    }

    fn below(&self, key: &str, table: Table) -> Self {
        Self { path: format!("{}{key}.", self.path), ..Self::root(&self.recipe, table) }
    }

    /// The tables of the list `key`, empty where it is absent.
    pub fn sections(&mut self, key: &str) -> Result<Vec<Section>, ConfigError> {
        let expected = format!("a list of tables [[{}{key}]]", self.path);
        let Some(value) = self.take(key) else { return Ok(Vec::new()) };
        let list = value.as_array().ok_or_else(|| self.refuse(key, &value, expected.clone()))?;
        let section = |(index, item): (usize, &Value)| match item {
            Value::Table(table) => Ok(self.below(&format!("{key}[{index}]"), table.clone())),
            _ => Err(self.refuse(key, &value, expected.clone())),
        };
        list.iter().enumerate().map(section).collect()
    }

    /// An integer in `range`; required where there is no default.
    pub fn integer(
        &mut self,
        key: &str,
        range: RangeInclusive<usize>,
        default: Option<usize>,
    ) -> Result<usize, ConfigError> {
        self.value(key, integers(&range), default, |value| integer_in(value, &range))
    }

    /// An integer in `range`, or `word` for none.
    pub fn integer_or(
        &mut self,
        key: &str,
        word: &str,
        range: RangeInclusive<usize>,
        default: Option<usize>,
    ) -> Result<Option<usize>, ConfigError> {
        self.value_or(key, word, integers(&range), default, |value| integer_in(value, &range))
    }

    /// A number in `interval`; required where there is no default.
    pub fn number(
        &mut self,
        key: &str,
        interval: impl Into<Interval>,
        default: Option<f64>,
    ) -> Result<f64, ConfigError> {
        let interval = interval.into();
        self.value(key, format!("a number in {interval}"), default, |value| number_in(value, interval))
    }

    /// A number in `interval`, or `word` for none.
    pub fn number_or(
        &mut self,
        key: &str,
        word: &str,
        interval: impl Into<Interval>,
        default: Option<f64>,
    ) -> Result<Option<f64>, ConfigError> {
        let interval = interval.into();
        let expected = format!("a number in {interval}");
        self.value_or(key, word, expected, default, |value| number_in(value, interval))
    }

    /// A list of numbers in `interval`, each larger than the one before.
    pub fn ascending(&mut self, key: &str, interval: impl Into<Interval>) -> Result<Vec<f64>, ConfigError> {
        let interval = interval.into();
        let expected = format!("a list of ascending numbers in {interval}");
        self.value(key, expected, None, |value| {
            numbers_in(value, interval).filter(|numbers| numbers.is_sorted_by(|a, b| a < b))
        })
    }

    /// Two ascending numbers in `interval`, or `word` (the default) for none.
    pub fn pair_or(
        &mut self,
        key: &str,
        word: &str,
        interval: impl Into<Interval>,
    ) -> Result<Option<[f64; 2]>, ConfigError> {
        let interval = interval.into();
        let expected = format!("two ascending numbers in {interval}");
        self.value_or(key, word, expected, None, |value| {
            <[f64; 2]>::try_from(numbers_in(value, interval)?).ok().filter(|pair| pair.is_sorted())
        })
    }

    /// A fraction "a/b" or a number, in `interval`.
    pub fn fraction(
        &mut self,
        key: &str,
        interval: Interval,
        default: &str,
    ) -> Result<Fraction, ConfigError> {
        let expected = format!("a fraction such as \"8/255\" or a number, in {interval}");
        let value = self.take(key).unwrap_or_else(|| Value::String(default.into()));
        let text = match &value {
            Value::String(text) => Some(text.clone()),
            Value::Float(_) | Value::Integer(_) => Some(value.to_string()),
            _ => None,
        };
        text.and_then(|text| Fraction::parse(&text))
            .filter(|fraction| interval.contains(fraction.value()))
            .ok_or_else(|| self.refuse(key, &value, expected))
    }

    pub fn boolean(&mut self, key: &str, default: bool) -> Result<bool, ConfigError> {
        self.value(key, "true or false", Some(default), Value::as_bool)
    }

    /// One line of text; required where there is no default.
    pub fn text(&mut self, key: &str, default: Option<&str>) -> Result<String, ConfigError> {
        self.value(key, "a line of text", default.map(Into::into), line)
    }

    /// A text that a folder can be called: the value, or else `default`.
    pub fn file_name(&mut self, key: &str, default: &str) -> Result<String, ConfigError> {
        let name = self.text(key, Some(default))?;
        let separates = |c: char| matches!(c, '/' | '\\') || c.is_control();
        let reason = match name.len() {
            0 => "an empty name",
            len if len > MAX_NAME_BYTES => "a longer one",
            _ if name.starts_with('.') => "a name that starts with a dot",
            _ if name.contains(separates) => "a path",
            _ => return Ok(name),
        };
        let expected = format!("the name of a folder, of up to {MAX_NAME_BYTES} bytes, and not {reason}");
        Err(self.refuse(key, &Value::String(name), expected))
    }

    /// A list of texts, each given once.
    pub fn texts(&mut self, key: &str, default: &[&str]) -> Result<Vec<String>, ConfigError> {
        let default = default.iter().map(|&text| text.into()).collect();
        self.value(key, "a list of names, each once", Some(default), |value| {
            let texts: Vec<String> = value.as_array()?.iter().map(line).collect::<Option<_>>()?;
            texts.iter().enumerate().all(|(i, text)| !texts[..i].contains(text)).then_some(texts)
        })
    }

    /// One of the names of `T`; required where there is no default.
    pub fn name<T: Named>(&mut self, key: &str, default: Option<T>) -> Result<T, ConfigError> {
        self.value(key, T::names(), default, |value| T::from_name(value.as_str()?))
    }

    /// Drops a key of older recipes whose value is what happens without it, and refuses any other value.
    pub fn retired(&mut self, key: &str, kept: &str) -> Result<(), ConfigError> {
        match self.table.remove(key) {
            Some(value) if value.as_str() != Some(kept) => Err(self.refuse(
                key,
                &value,
                format!("\"{kept}\", or better no such key: it has been retired"),
            )),
            _ => Ok(()),
        }
    }

    /// What was read, where `check` has nothing against it and no key is left.
    pub fn finish<T>(
        &self,
        read: T,
        check: impl FnOnce(&T) -> Result<(), Refusal>,
    ) -> Result<T, ConfigError> {
        self.check(check(&read))?;
        let Some(key) = self.table.keys().next() else { return Ok(read) };
        let hint = match nearest(key, self.known.iter().map(String::as_str)) {
            Some(near) => format!("; did you mean {}{near}?", self.path),
            None => format!("; known here: {}", self.known.join(", ")),
        };
        Err(ConfigError::UnknownKey { recipe: self.recipe.clone(), key: format!("{}{key}", self.path), hint })
    }

    /// Takes over what a whole configuration says of its keys.
    pub fn check(&self, outcome: Result<(), Refusal>) -> Result<(), ConfigError> {
        outcome.map_err(|refusal| {
            let key = format!("{}{}", self.path, refusal.key);
            ConfigError::Value { recipe: self.recipe.clone(), refusal: Refusal { key, ..refusal } }
        })
    }

    fn refuse(&self, key: &str, actual: &Value, expected: impl Into<String>) -> ConfigError {
        let mut expected = expected.into();
        let mut shown = actual.to_string();
        let number = match actual {
            Value::Float(number) => Some(*number),
            Value::String(text) => Fraction::parse(text).map(|fraction| fraction.value()),
            _ => None,
        };
        if number.is_some_and(vanishes) {
            expected += "; so small a number is 0 in f32";
            if let Value::Float(number) = actual {
                shown = format!("{number:e}");
            }
        }
        let refusal = Refusal::new(format!("{}{key}", self.path), shown, expected);
        ConfigError::Value { recipe: self.recipe.clone(), refusal }
    }

    /// What `parse` makes of the value of a key; required where there is no default.
    fn value<T>(
        &mut self,
        key: &str,
        expected: impl Into<String>,
        default: Option<T>,
        parse: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<T, ConfigError> {
        let Some(value) = self.take(key) else {
            let (recipe, key) = (self.recipe.clone(), format!("{}{key}", self.path));
            return default.ok_or_else(|| ConfigError::MissingKey { recipe, key, expected: expected.into() });
        };
        parse(&value).ok_or_else(|| self.refuse(key, &value, expected))
    }

    /// The same, or `word` for none.
    fn value_or<T>(
        &mut self,
        key: &str,
        word: &str,
        expected: String,
        default: Option<T>,
        parse: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        self.value(key, format!("\"{word}\" or {expected}"), Some(default), |value| match value.as_str() {
            Some(text) if text == word => Some(None),
            _ => parse(value).map(Some),
        })
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.known.push(key.into());
        self.table.remove(key)
    }
}

fn integers(range: &RangeInclusive<usize>) -> String {
    format!("an integer from {} to {}", range.start(), range.end())
}

fn integer_in(value: &Value, range: &RangeInclusive<usize>) -> Option<usize> {
    let integer = usize::try_from(value.as_integer()?).ok()?;
    range.contains(&integer).then_some(integer)
}

fn number_in(value: &Value, interval: Interval) -> Option<f64> {
    let number = match value {
        Value::Float(number) => *number,
        Value::Integer(number) => *number as f64,
        _ => return None,
    };
    interval.contains(number).then_some(number)
}

fn numbers_in(value: &Value, interval: Interval) -> Option<Vec<f64>> {
    value.as_array()?.iter().map(|item| number_in(item, interval)).collect()
}

fn line(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    (!text.trim().is_empty() && !text.contains(char::is_control)).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_keep_their_ends() {
        assert!(!above(0.0, 1.0).contains(0.0) && above(0.0, 1.0).contains(1.0));
        let half_open = Interval::from(0.0..1.0);
        assert!(half_open.contains(0.0) && !half_open.contains(1.0));
        assert!(!half_open.contains(f64::NAN));
        assert_eq!(half_open.to_string(), "[0, 1)");
    }
}
