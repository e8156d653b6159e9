//! Where a recipe's text comes from: a built-in name or a file, and the recipes that it extends.
//!
//! `extends = "cifar10-trades"` takes another recipe and changes some of its keys: tables are merged, and the extending
//! recipe wins. It names a built-in recipe or a file, whose path is relative to the extending file. A section of another
//! `kind` replaces the one under it whole, as its keys are others; the name is never inherited.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{RecipeError, builtin};
use crate::config::{ConfigError, Refusal};
use crate::files::{limit, read_text};

/// The key that names the recipe to extend.
const EXTENDS: &str = "extends";
/// Recipes in a chain, after the built-in ones at its end.
const MAX_CHAIN: usize = 8;

/// Where a text lies; what it extends is looked for from there.
#[derive(Clone, Debug, PartialEq)]
enum Place {
    BuiltIn(&'static str),
    /// Without symbolic links, so that a file is known by whatever path.
    File(PathBuf),
    /// In memory: it extends built-in recipes only.
    Text,
}

/// The text of a recipe.
pub struct Source {
    pub name: String,
    text: String,
    place: Place,
}

/// A recipe's own keys, without those of the recipe that it extends.
struct Layer {
    name: String,
    table: Table,
}

/// A recipe and those that it extends, itself first.
pub struct Chain(Vec<Layer>);

impl Source {
    /// A text in memory.
    pub fn text(name: &str, text: &str) -> Self {
        Self { name: name.into(), text: text.into(), place: Place::Text }
    }

    /// The built-in recipe of this name, or else the file at this path.
    pub fn named(name_or_path: &OsStr) -> Result<Self, RecipeError> {
        if let Some(builtin) = builtin::find(name_or_path) {
            return Ok(Self::built_in(builtin));
        }
        Self::file(Path::new(name_or_path))?
            .ok_or_else(|| builtin::not_found(&name_or_path.to_string_lossy()))
    }

    fn built_in(builtin: &'static builtin::Builtin) -> Self {
        let place = Place::BuiltIn(builtin.name);
        Self { name: builtin.name.into(), text: builtin.text.into(), place }
    }

    /// The file at `path`, named after its stem; `None` where there is none.
    fn file(path: &Path) -> Result<Option<Self>, RecipeError> {
        match read_text(path, limit::SETTINGS) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(RecipeError::Io { path: path.into(), reason: error.to_string() }),
            Ok(text) => {
                let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
                // A pipe has no canonical path.
                let place = Place::File(path.canonicalize().unwrap_or_else(|_| path.into()));
                Ok(Some(Self { name, text, place }))
            }
        }
    }

    /// The recipe that this one's `extends` names.
    fn base(&self, named: &str) -> Result<Self, RecipeError> {
        if let Some(builtin) = builtin::find(OsStr::new(named)) {
            return Ok(Self::built_in(builtin));
        }
        let folder = match &self.place {
            Place::File(path) => path.parent(),
            _ => None,
        };
        let path = folder.map(|folder| folder.join(named));
        let found = path.as_deref().map(Self::file).transpose()?.flatten();
        found.ok_or_else(|| {
            let file =
                path.map_or(String::new(), |path| format!(" or a file; there is no {}", path.display()));
            self.refuse(named, format!("a built-in recipe{file}{}", builtin::hint(named)))
        })
    }

    fn parse(&self) -> Result<Table, RecipeError> {
        self.text.parse().map_err(|error: toml::de::Error| RecipeError::Syntax {
            recipe: self.name.clone(),
            reason: error.to_string().trim_end().into(),
        })
    }

    fn refuse(&self, actual: &str, expected: String) -> RecipeError {
        // An actual value here is a name or a path, which a message shows whole.
        let refusal = Refusal { key: EXTENDS.into(), actual: format!("{actual:?}"), expected };
        ConfigError::Value { recipe: self.name.clone(), refusal }.into()
    }
}

impl Chain {
    /// Reads a recipe and all that it extends.
    pub fn read(source: Source) -> Result<Self, RecipeError> {
        let (mut layers, mut sources) = (Vec::new(), vec![source]);
        loop {
            let source = &sources[sources.len() - 1];
            let mut table = source.parse()?;
            let extends = table.remove(EXTENDS);
            layers.push(Layer { name: source.name.clone(), table });
            let named = match extends {
                None => return Ok(Self(layers)),
                Some(Value::String(named)) => named,
                Some(value) => {
                    let expected = "the name of a recipe or the path of a file".into();
                    return Err(source.refuse(&value.to_string(), expected));
                }
            };
            let base = source.base(&named)?;
            if let Some(at) = sources.iter().position(|known| known.place == base.place) {
                let names: Vec<&str> = sources[at..].iter().map(|source| source.name.as_str()).collect();
                return Err(source.refuse(&named, format!("no circle: {}", names.join(" extends "))));
            }
            let is_own = |source: &Source| !matches!(source.place, Place::BuiltIn(_));
            if is_own(&base) && sources.len() == MAX_CHAIN {
                return Err(source.refuse(&named, format!("at most {MAX_CHAIN} recipes in a chain")));
            }
            sources.push(base);
        }
    }

    /// The name of the recipe, whatever it extends is called.
    pub fn name(&self) -> &str {
        &self.0[0].name
    }

    /// All keys as one table.
    pub fn merged(&self) -> Table {
        let mut merged = Table::new();
        for layer in self.0.iter().rev() {
            merged.remove("name");
            merge(&mut merged, layer.table.clone());
        }
        merged
    }

    /// An error about a key that is not the recipe's own says whose it is; `--set` made those in `overridden`.
    pub fn attribute(&self, mut error: ConfigError, overridden: &[&str]) -> ConfigError {
        if let ConfigError::UnknownKey { recipe, key, .. }
        | ConfigError::Value { recipe, refusal: Refusal { key, .. } } = &mut error
        {
            let of = |layer: &&Layer| has(&layer.table, key);
            let origin = self.0.iter().find(of).filter(|_| !overridden.contains(&key.as_str()));
            if let Some(layer) = origin.filter(|layer| layer.name != self.name()) {
                *recipe = format!("{}, which {recipe} extends", layer.name);
            }
        }
        error
    }
}

/// Puts `over` on top of `under`.
fn merge(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) if same_kind(under, &over) => merge(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

fn same_kind(under: &Table, over: &Table) -> bool {
    over.get("kind").is_none_or(|kind| under.get("kind") == Some(kind))
}

/// Whether a table has this dotted key, whatever its index into a list is.
fn has(table: &Table, key: &str) -> bool {
    let key = key.split('[').next().unwrap_or(key);
    match key.split_once('.') {
        Some((section, rest)) => {
            table.get(section).and_then(Value::as_table).is_some_and(|table| has(table, rest))
        }
        None => table.contains_key(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        text.parse().unwrap()
    }

    #[test]
    fn tables_merge_and_another_kind_replaces() {
        let mut merged = table("batch = 1\n[a]\nx = 1\ny = 2\n[schedule]\nkind = 'step'\ndrops = [1]");
        merge(&mut merged, table("[a]\ny = 3\n[schedule]\nfactor = 0.5"));
        assert_eq!(
            merged,
            table("batch = 1\n[a]\nx = 1\ny = 3\n[schedule]\nkind = 'step'\ndrops = [1]\nfactor = 0.5")
        );
        merge(&mut merged, table("[schedule]\nkind = 'one-cycle'\nrise = 0.1"));
        assert_eq!(merged["schedule"], Value::Table(table("kind = 'one-cycle'\nrise = 0.1")));
        merge(&mut merged, table("[schedule]\nkind = 'one-cycle'\nupdate = 'epoch'"));
        assert_eq!(merged["schedule"].as_table().unwrap().len(), 3);
    }

    #[test]
    fn keys_are_found_through_sections_and_lists() {
        let table = table("batch = 1\n[attack]\nsteps = 3\nphases = [{ from_epoch = 1 }]");
        for key in ["batch", "attack", "attack.steps", "attack.phases[0].from_epoch"] {
            assert!(has(&table, key), "{key}");
        }
        for key in ["epochs", "attack.epsilon", "batch.size"] {
            assert!(!has(&table, key), "{key}");
        }
    }
}
