//! secateur: data-pruned adversarial training of ResNet-18 on CIFAR, through hand-written CUDA kernels.
//!
//! # Module overview
//!
//! Imports run downward only. Nothing above `ops` says CUDA; nothing in `engine` names a training method.
//!
//! | module | what it holds |
//! |---|---|
//! | [`cli`] | one file a command: `train`, `eval`, `select`, `dump`, `weights`, `data`, `profile`, `bench`, `report` |
//! | [`measure`] | the harness of `bench`: samples, ceilings, kernels, rooflines, traces, comparisons, speed-up tables |
//! | [`report`] | run folders as one HTML page: tables, SVG plots, pictures |
//! | [`recipe`] | the sections of the modules below composed into one TOML document, and checked across modules |
//! | [`train`] | training runs: the loop, learning-rate schedules, checkpoints, metrics, the run folder |
//! | [`evaluate`] | evaluations: clean, PGD, CW and AutoAttack over a data split, with sanity checks |
//! | [`prune`] | which samples to train on: Adv-GRAD-MATCH, Adv-GLISTER, rankings and their controls |
//! | [`objective`] | what a training step minimises: loss, logit gradients, the train passes they need |
//! | [`accelerate`] | cheaper attacks for any objective: BulletTrain |
//! | [`attack`] | the inner maximisation: random starts and sign steps over micro-batches; evaluation's searches |
//! | [`batch`] | the tensors of one batch: images, adversarial images, the outputs of a loss |
//! | [`ops`] | the operations of a device, one a file: contract, check, CPU form, kernel launch |
//! | [`engine`] | one network on one device: memory, weights, optimizer, passes, and every check |
//! | [`mod@cpu`] | the CPU as a backend: f32, the oracle, or bf16; our own vector kernels |
//! | [`mod@cuda`] | our kernels as a backend, through a driver: a GPU, the emulator, or a record of what would run |
//! | [`collective`] | engines that train together: what ranks of one process, or of several, exchange |
//! | [`clock`] | the time of day, a moment as a date, and what work takes |
//! | [`progress`] | what a session reports while it works, and how it is stopped |
//! | [`model`] | residual networks as data: layers with shapes and offsets, the passes over them, initialisation, weights files |
//! | [`data`] | CIFAR files, generated images, download, splits and the order of an epoch |
//! | [`digest`] | SHA-256 as text |
//! | [`files`] | bounded reading, atomic writing, held folders, locks, and the inputs and outputs of a command |
//! | [`config`] | a table of settings read key by key; unknown keys and wrong values are refused |
//! | [`names`] | enums whose values have names in recipes and records |
//! | [`text`] | text of others, made fit to be shown |
//! | [`philox`] | the one source of randomness: counter-based, the same bits on every device |
//!
//! Beside `src`: `kernels/` holds the CUDA C++, one operation a file, compiled by `build.rs` for GPUs and,
//! from the same source, for the CPU; `recipes/` holds the recipes that ship inside the binary.

pub mod accelerate;
pub mod attack;
pub mod batch;
pub mod cli;
pub mod clock;
pub mod collective;
pub mod config;
pub mod cpu;
pub mod cuda;
pub mod data;
pub mod digest;
pub mod engine;
pub mod evaluate;
pub mod files;
pub mod measure;
pub mod model;
pub mod names;
pub mod objective;
pub mod ops;
pub mod philox;
pub mod progress;
pub mod prune;
pub mod recipe;
pub mod report;
pub mod text;
pub mod train;
