//! What the build decides and what it checks.

mod build_logic;
mod sass;
