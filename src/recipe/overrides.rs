//! `--set key=value`: changes a recipe before it is resolved.
//!
//! The key is dotted (`attack.steps`), the value is a TOML value; text that is no TOML value is taken as a string, so
//! that `--set attack.epsilon=4/255` needs no quotes inside quotes.

use toml::{Table, Value};

use super::RecipeError;

/// Parts of a dotted key; recipes have two.
const MAX_DEPTH: usize = 8;

/// Applies one `key=value` and returns the key.
pub fn apply<'a>(table: &mut Table, text: &'a str) -> Result<&'a str, RecipeError> {
    let error = |reason: &str| RecipeError::Override { text: text.into(), reason: reason.into() };
    let Some((key, value)) = text.split_once('=') else {
        return Err(error("expected key=value, such as attack.steps=7"));
    };
    let (key, value) = (key.trim(), value.trim());
    if key == "extends" {
        return Err(error("a recipe's file says what it extends"));
    }
    if value.is_empty() {
        return Err(error("the value is empty"));
    }
    let depth = key.split('.').count();
    if depth > MAX_DEPTH {
        return Err(error(&format!("the key has {depth} parts, expected at most {MAX_DEPTH}")));
    }
    let mut parts: Vec<&str> = key.split('.').collect();
    let last = parts.pop().unwrap_or_default();
    if last.is_empty() || parts.iter().any(|part| part.is_empty()) {
        return Err(error("the key is empty or has an empty part"));
    }
    let mut here = table;
    for part in parts {
        let entry = here.entry(part).or_insert_with(|| Value::Table(Table::new()));
        here = match entry {
            Value::Table(table) => table,
            _ => return Err(error(&format!("{part} is a value of the recipe, not a section"))),
        };
    }
    if matches!(here.get(last), Some(Value::Table(_))) {
        return Err(error(&format!("{last} is a section; set one of its keys, {key}.KEY=VALUE")));
    }
    here.insert(last.into(), parse(value));
    Ok(key)
}

/// The TOML value, or else the text as it stands.
fn parse(text: &str) -> Value {
    let parsed: Option<Table> = format!("value = {text}").parse().ok();
    match parsed {
        // More than one key means that the text had a line break: not a value.
        Some(mut table) if table.len() == 1 => table.remove("value").unwrap_or(Value::String(text.into())),
        _ => Value::String(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_their_toml_type_or_are_text() {
        assert_eq!(parse("7"), Value::Integer(7));
        assert_eq!(parse("5e-4"), Value::Float(5e-4));
        assert_eq!(parse("true"), Value::Boolean(true));
        assert_eq!(parse("[75, 90]"), Value::Array(vec![Value::Integer(75), Value::Integer(90)]));
        assert_eq!(parse("\"4/255\""), Value::String("4/255".into()));
        assert_eq!(parse("4/255"), Value::String("4/255".into()));
        assert_eq!(parse("cifar10"), Value::String("cifar10".into()));
        assert_eq!(parse("1\nother = 2"), Value::String("1\nother = 2".into()));
    }

    #[test]
    fn depth_is_bounded() {
        let deep = ["a"; 60_000].join(".");
        let error = apply(&mut Table::new(), &format!("{deep}=1")).unwrap_err().to_string();
        assert!(error.ends_with("the key has 60000 parts, expected at most 8"));
        // A value is not TOML where it nests as deep, and text then.
        for value in [format!("{{{deep}=1}}"), format!("{}1{}", "[".repeat(60_000), "]".repeat(60_000))] {
            assert_eq!(parse(&value), Value::String(value));
        }
        for text in [format!("{deep}=1"), format!("[{deep}]"), format!("a={}", "[".repeat(60_000))] {
            assert!(text.parse::<Table>().is_err());
        }
    }

    #[test]
    fn keys_reach_into_sections() {
        let mut table: Table = "batch = 128\n[attack]\nsteps = 10".parse().unwrap();
        apply(&mut table, "attack.steps = 7").unwrap();
        apply(&mut table, "optimizer.momentum=0.5").unwrap();
        assert_eq!(table["attack"]["steps"], Value::Integer(7));
        assert_eq!(table["optimizer"]["momentum"], Value::Float(0.5));
        for bad in ["attack.steps", "=3", "attack.=3", ".steps=3", "batch.size=3", "attack=3", "epochs="] {
            let error = apply(&mut table.clone(), bad).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--set {bad}: ")), "{error}");
        }
    }
}
