//! The list of built-in recipes, sorted by name: every table of every TOML file of `recipes/`.
//!
//! A file holds a family of recipes. `[NAME]` begins one; its comment stands right above, and the keys of its sections are dotted,
//! as `--set` takes them.

use std::path::Path;
use std::{fs, io};

/// Writes `recipes.rs` into `out`: an array of `Builtin`, one for each recipe of `folder`.
pub fn build(folder: &Path, out: &Path) -> Result<(), String> {
    let at = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| format!("{path}: {error}")
    };
    let mut recipes = Vec::new();
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let file = entry.map_err(at(folder))?.path();
        if file.extension().is_some_and(|extension| extension == "toml") {
            let text = fs::read_to_string(&file).map_err(at(&file))?;
            recipes.extend(split(&text).map_err(|reason| format!("{}: {reason}", file.display()))?);
        }
    }
    recipes.sort();
    if let Some(pair) = recipes.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(format!("{}: two recipes are named {}", folder.display(), pair[0].0));
    }
    let mut code = String::from("&[\n");
    for (name, text) in recipes {
        // Debug quotes as Rust does.
        code += &format!("    Builtin {{ name: {name:?}, text: {text:?} }},\n");
    }
    code += "]\n";
    let list = out.join("recipes.rs");
    fs::write(&list, code).map_err(at(&list))
}

/// The recipes of a file: the name of each, and its text as if it had a file of its own.
pub fn split(file: &str) -> Result<Vec<(String, String)>, String> {
    let mut recipes: Vec<(String, String)> = Vec::new();
    // Of what comes next: a recipe or a key.
    let mut comment = String::new();
    for (number, line) in (1..).zip(file.lines()) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            let comment = std::mem::take(&mut comment);
            recipes.push((name.into(), format!("{comment}name = \"{name}\"\n")));
        } else if line.starts_with('#') {
            comment += &format!("{line}\n");
        } else if let Some((_, text)) = recipes.last_mut() {
            *text += &format!("{}{line}\n", std::mem::take(&mut comment));
        } else if line.is_empty() {
            comment.clear();
        } else {
            return Err(format!("line {number}: {line}, expected [NAME] before the first key"));
        }
    }
    Ok(recipes)
}
