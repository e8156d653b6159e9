//! Both engines: operations and passes against definitions, against PyTorch and against each other.

#[path = "../common/mod.rs"]
mod common;

mod attack_loop;
mod awp;
mod engine_agreement;
mod engine_state;
mod first_stage;
mod graphs;
mod last_layer;
mod nesterov;
mod paired_losses;
mod paired_passes;
mod reference_engine;
mod reference_pytorch;
mod refusals;
