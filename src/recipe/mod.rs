//! TOML to a typed, fully resolved recipe.
