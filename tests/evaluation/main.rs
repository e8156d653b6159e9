//! Evaluation attacks and protocols.

#[path = "../common/mod.rs"]
mod common;

mod apgd;
mod autoattack;
mod evaluate;
mod fab;
mod square;
