//! Measuring: what a step costs, kernel by kernel and as a whole, and whether two measurements differ.
//!
//! | file | what lives there |
//! |---|---|
//! | `statistics` | median, quartiles, noise, the intervals of a ratio and of what is paired |
//! | `harness` | samples until they are many and quiet enough, or the time is up |
//! | `ceilings` | what the device reaches at most, measured in the same run |
//! | `workload` | the work that is measured: training steps, attacks, evaluations of a recipe |
//! | `replay` | the kernels of a step by themselves, with cold caches and in batches |
//! | `profile` | the kernels of some steps as a table |
//! | `model` | the least that a step can take: the roofline of its launches |
//! | `probes` | work of a known amount: products, copies, the flush of every cache |
//! | `predict` | how long launches should take on an H200 |
//! | `trace` | the same as a Chrome / Perfetto trace |
//! | `document` | the JSON and CSV files, and the device block |
//! | `rows` | their rows as a table and as CSV |
//! | `compare` | two files row by row: SAME, FASTER, SLOWER or AMBIGUOUS |
//! | [`versus`] | two builds in turns, the same verdicts from the ratio within each round |
//! | `selection` | one selection of training samples, its survey apart from its algorithm |
//! | `selection_error` | how far the gradients of subsets are from that of all samples |
//! | [`speedup`] | whole trainings and their controls as a table |
//! | `table` | columns of text |
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
pub mod selection;
pub mod selection_error;
pub mod speedup;
pub mod statistics;
pub mod table;
pub mod trace;
pub mod versus;
pub mod workload;
