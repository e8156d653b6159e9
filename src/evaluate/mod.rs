//! Evaluation protocols over a data split.
