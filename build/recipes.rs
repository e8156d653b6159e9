//! The list of built-in recipes: every TOML file of `recipes/`, sorted by name.

use std::path::Path;
use std::{fs, io};

/// Writes `recipes.rs` into `out`: an array of `Builtin`, one for each file of `folder`.
pub fn build(folder: &Path, out: &Path) -> Result<(), String> {
    let at = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| format!("{path}: {error}")
    };
    let entries = fs::read_dir(folder).map_err(at(folder))?;
    let mut files = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(at(folder))?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    let mut code = String::from("&[\n");
    for file in files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        // Debug quotes as Rust does, so a path may hold whatever a file system allows.
        code += &format!(
            "    Builtin {{ name: {name:?}, text: include_str!({:?}) }},\n",
            file.display().to_string()
        );
    }
    code += "]\n";
    let list = out.join("recipes.rs");
    fs::write(&list, code).map_err(at(&list))
}
