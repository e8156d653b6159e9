//! Training methods, selections and whole runs.

#[path = "../common/mod.rs"]
mod common;

mod awp;
mod bullet_train;
mod bullet_train_groups;
mod checkpoints;
mod extra_data;
mod methods;
mod methods_emulated;
mod prune_factored;
mod prune_glister;
mod prune_grad_match;
mod prune_grad_pass;
mod prune_info_batch;
mod prune_pursuit;
mod prune_simple;
mod prune_training;
mod ranks;
mod training_run;
