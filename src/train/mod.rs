//! The training loop and what it leaves on disk.
pub mod schedule;
