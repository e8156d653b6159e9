//! `secateur recipes`: lists the built-in recipes, or shows one with every value resolved.

use std::ffi::OsString;

use super::console::Console;
use crate::recipe::{BUILTIN, Recipe};

/// List the built-in recipes, or show one with every value resolved
#[derive(clap::Args)]
pub struct Args {
    /// A built-in recipe's name or a TOML file
    recipe: Option<OsString>,
    /// Change a value: --set attack.steps=7
    #[arg(long, value_name = "KEY=VALUE", requires = "recipe")]
    set: Vec<String>,
}

pub fn run(args: Args, console: &Console) -> anyhow::Result<()> {
    match args.recipe {
        Some(recipe) => console.line(Recipe::load(&recipe, &args.set)?.to_toml().trim_end()),
        None => {
            for recipe in BUILTIN {
                // A recipe file opens with a comment that says what it is for.
                let about = recipe.text.lines().next().unwrap_or_default().trim_start_matches(['#', ' ']);
                console.line(format!("{:33} {about}", recipe.name));
            }
        }
    }
    Ok(())
}
