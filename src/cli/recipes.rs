//! `secateur recipes`: lists the built-in recipes, or shows one with every value resolved.

use std::ffi::OsString;

use super::console::Console;
use crate::accelerate::Acceleration;
use crate::names::Named;
use crate::objective::Method;
use crate::prune::SelectionMethod;
use crate::recipe::{BUILTIN, Recipe};

/// List the built-in recipes, or show one with every value resolved
#[derive(clap::Args)]
#[command(after_long_help = methods())]
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

/// What the methods of a recipe can be.
fn methods() -> String {
    let line = |name: &str, about: &str, paper: &str| match paper {
        "" => format!("  {name:15} {about}\n"),
        _ => format!("  {name:15} {about} ({paper})\n"),
    };
    let objectives = Method::ALL.iter().map(|(_, method)| method.row());
    let accelerations = Acceleration::ALL.iter().map(|(_, method)| method.row());
    let selections = SelectionMethod::ALL.iter().map(|(_, method)| method.row());
    let mut text = String::from(
        "objective.method: the loss of logits z of an image and z' of its adversarial form, p and q their softmax\n",
    );
    text.extend(objectives.map(|row| line(row.name, row.about, row.paper)));
    text += "\naccelerate.method: what makes the attack cheaper\n";
    text.extend(accelerations.map(|row| line(row.name, row.about, row.paper)));
    text += "\nselection.method: the samples that are trained on\n";
    text.extend(selections.map(|row| line(row.name, row.about, row.paper)));
    text
}
