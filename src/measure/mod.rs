//! Measuring: what a step costs, kernel by kernel and as a whole, and whether two measurements differ.
//!
//! # The files
//!
//! `--json` writes one object ([`document::Document`]). `secateur_measure` is the version of this layout, 1. Seconds are those
//! of one repetition (a step, an attack, an evaluation, a call of a kernel). `rows` holds what was sampled, with every sample,
//! one object for each name and state of the caches (`cache` is `cold` or `warm`);
//! `kernels` has one object for each kernel, `{name, calls, seconds, flops, bytes, ...}`, means of one call; `ceiling_flops`
//! and `ceiling_bytes` are what the device reached, in operations and bytes a second, or null. A bench rewrites the file
//! after each row, and `finished` is false until the last: a bench that is killed leaves the rows so far. Unknown keys are to be
//! ignored; keys are added without a new version, and changed or taken away only with one. `bench speedup`, `bench versus` and
//! `bench selection-error` have layouts of their own.

pub mod ceilings;
pub mod compare;
pub mod document;
pub mod harness;
pub mod model;
pub mod predict;
pub mod probes;
pub mod profile;
pub mod replay;
mod rows;
pub mod scaling;
pub mod selection;
pub mod selection_error;
pub mod speedup;
pub mod statistics;
pub mod table;
pub mod trace;
pub mod versus;
pub mod workload;
