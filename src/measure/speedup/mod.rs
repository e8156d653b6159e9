//! Speed-up tables: recipes and their controls under one set of seeds, what each cost and how robust it became.

pub mod cost;
pub mod document;
pub mod evaluator;
pub mod plan;
mod table;
