//! The inner maximisation: random starts and sign steps over micro-batches.
