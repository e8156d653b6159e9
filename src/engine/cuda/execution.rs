//! [`Execution`] on the cuda engine: what its graphs and its driver are told. Checked by `tests/graphs.rs` and
//! `tests/first_stage.rs`.

use super::engine::Cuda;
use crate::engine::{Error, Execution, Result};

impl Execution for Cuda {
    fn replay_graphs(&mut self, on: bool) {
        self.attacks.switch(on);
        self.passes.switch(on);
    }

    fn start_launches_early(&mut self, on: bool) {
        self.driver.start_early(on);
        self.attacks.forget();
        self.passes.forget();
    }

    fn split_sums(&mut self, on: bool) {
        if self.driver.splits_sums() != on {
            self.driver.split_sums(on);
            self.attacks.forget();
            self.passes.forget();
        }
    }

    fn first_stage_images(&mut self, images: usize) -> Result<()> {
        if images == 0 {
            return Err(Error::Invalid("a first stage of 0 images at a time: expected 1 at least".into()));
        }
        self.eval.first_stage_images(images);
        self.attacks.forget();
        Ok(())
    }
}
