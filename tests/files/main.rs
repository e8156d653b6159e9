//! Files that the program reads and writes, its own and those of others.

#[path = "../common/mod.rs"]
mod common;

mod data_files;
mod download;
mod extra_images;
mod fuzz;
#[cfg(unix)]
mod hostile;
#[cfg(unix)]
mod outputs;
mod recipes;
mod weights_files;
