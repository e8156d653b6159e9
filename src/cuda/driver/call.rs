//! A launch as data: what records and graphs keep, to make it again.

use super::{Cost, Driver, Kernel};
use crate::engine::Result;

/// All that a launch is made from. Its parameters name memory, which must still be there when it is made again.
#[derive(Clone, Debug)]
pub struct Call {
    pub kernel: Kernel,
    pub grid: [u32; 3],
    pub params: Box<[u8]>,
    pub cost: Cost,
}

impl Call {
    pub fn new(kernel: &Kernel, grid: [u32; 3], params: &[u8], cost: Cost) -> Self {
        Self { kernel: *kernel, grid, params: params.into(), cost }
    }

    /// Launches it.
    pub fn make(&self, driver: &dyn Driver) -> Result<()> {
        driver.launch(&self.kernel, self.grid, &self.params, self.cost)
    }
}
