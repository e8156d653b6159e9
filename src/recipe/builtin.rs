//! The recipes that ship inside the binary: those of `recipes/`, found by name.

use std::ffi::OsStr;

use super::RecipeError;
use crate::config::nearest;

/// One recipe of the binary.
#[derive(Clone, Copy, Debug)]
pub struct Builtin {
    pub name: &'static str,
    /// As TOML, with its comment.
    pub text: &'static str,
}

/// Every recipe of `recipes/`, by name; the build lists the folder.
pub const BUILTIN: &[Builtin] = include!(concat!(env!("OUT_DIR"), "/recipes.rs"));

/// The recipe of this name.
pub fn find(name: &OsStr) -> Option<&'static Builtin> {
    BUILTIN.iter().find(|builtin| builtin.name == name)
}

/// The built-in name that `name` most likely meant, as the end of a message.
pub fn hint(name: &str) -> String {
    let names = BUILTIN.iter().map(|builtin| builtin.name);
    nearest(name, names).map_or(String::new(), |near| format!("; did you mean {near}?"))
}

/// The error for a name that is neither built in nor a file.
pub fn not_found(name: &str) -> RecipeError {
    let known = BUILTIN.iter().map(|builtin| builtin.name).collect::<Vec<_>>().join(", ");
    RecipeError::NotFound { name: name.into(), known, hint: hint(name) }
}
