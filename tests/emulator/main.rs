//! The emulator of the GPU: portable functions, what only a Hopper has, and the faults that it must catch.

#[path = "../common/mod.rs"]
mod common;

mod hopper;
mod hopper_faults;
mod portable;
