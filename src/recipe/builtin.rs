//! The recipes that ship inside the binary: the files of `recipes/`, found by name.
//!
//! Checked by tests/recipes.rs (each parses, round-trips and is listed). Called by [`super::Recipe::load`].

use std::ffi::OsStr;

use super::RecipeError;
use super::spelling::nearest;

/// One recipe of the binary.
#[derive(Clone, Copy, Debug)]
pub struct Builtin {
    pub name: &'static str,
    /// The TOML file as it stands.
    pub text: &'static str,
}

macro_rules! builtin {
    ($($name:literal),+ $(,)?) => {
        /// Every recipe of `recipes/`.
        pub const BUILTIN: &[Builtin] = &[
            $(Builtin { name: $name, text: include_str!(concat!("../../recipes/", $name, ".toml")) },)+
        ];
    };
}

builtin! {
    "quick",
    "cifar10-demo",
    "cifar10-selection-error",
    "cifar10-pgd-at",
    "cifar10-pgd-at-rice",
    "cifar10-pgd-at-wa",
    "cifar10-pgd-at-large-batch",
    "cifar10-standard",
    "cifar10-trades",
    "cifar10-mart",
    "cifar10-fgsm-rs",
    "cifar10-n-fgsm",
    "cifar10-free",
    "cifar10-pgd-at-bullet",
    "cifar10-trades-bullet",
    "cifar10-mart-bullet",
    "cifar10-standard-bullet",
    "cifar10-fgsm-rs-bullet",
    "cifar10-n-fgsm-bullet",
    "cifar10-free-bullet",
    "cifar10-trades-gradmatch",
    "cifar10-trades-gradmatch-bullet",
    "cifar10-trades-glister",
    "cifar10-trades-glister-bullet",
    "cifar10-mart-gradmatch",
    "cifar10-mart-gradmatch-bullet",
    "cifar10-mart-glister",
    "cifar10-mart-glister-bullet",
    "cifar10-trades-loss-rank",
    "cifar10-trades-random-online",
    "cifar10-trades-short",
    "cifar10-trades-info-batch",
    "cifar10-trades-large-batch",
    "cifar10-mart-large-batch",
    "cifar100-pgd-at",
    "cifar100-standard",
    "cifar100-trades",
    "cifar100-mart",
    "cifar100-fgsm-rs",
    "cifar100-n-fgsm",
    "cifar100-free",
    "cifar100-pgd-at-bullet",
    "cifar100-trades-bullet",
    "cifar100-mart-bullet",
    "cifar100-standard-bullet",
    "cifar100-fgsm-rs-bullet",
    "cifar100-n-fgsm-bullet",
    "cifar100-free-bullet",
    "cifar100-trades-gradmatch",
    "cifar100-trades-gradmatch-bullet",
    "cifar100-trades-glister",
    "cifar100-trades-glister-bullet",
    "cifar100-mart-gradmatch",
    "cifar100-mart-gradmatch-bullet",
    "cifar100-mart-glister",
    "cifar100-mart-glister-bullet",
    "cifar100-trades-large-batch",
    "cifar100-mart-large-batch",
}

/// The built-in recipe of this name.
pub fn find(name: &OsStr) -> Option<&'static Builtin> {
    BUILTIN.iter().find(|builtin| builtin.name == name)
}

/// The error for a name that is neither built in nor a file.
pub fn not_found(name: &str) -> RecipeError {
    let names = || BUILTIN.iter().map(|builtin| builtin.name);
    let hint = nearest(name, names()).map_or(String::new(), |near| format!("; did you mean {near}?"));
    RecipeError::NotFound { name: name.into(), known: names().collect::<Vec<_>>().join(", "), hint }
}
