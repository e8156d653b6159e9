//! [`Execution`] on the cuda engine: what its graphs and its driver are told. Checked by `tests/graphs.rs`.

use super::engine::Cuda;
use crate::engine::Execution;

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
}
