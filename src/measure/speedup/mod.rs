//! Speed-up tables: recipes and their controls under one set of seeds, what each cost and how robust it became.
//!
//! | file | what it holds |
//! |---|---|
//! | `plan` | which runs a table needs: the recipes and their controls, each once |
//! | `cost` | the cost model, in passes through the network: predicted and of what a run did |
//! | `evaluator` | the best and the last weights of a run under the protocols, resumable and kept in its folder |
//! | `document` | what a table holds, and its JSON: rows, runs, figures |
//! | `table` | which figures there are, their means and deviations; text and CSV |

pub mod cost;
pub mod document;
pub mod evaluator;
pub mod plan;
mod table;
