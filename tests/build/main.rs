//! What the build decides and what it checks.

// The extra kernels are linked to every test, and the emulator that they need is in the library.
extern crate secateur as _;

mod build_logic;
mod sass;
