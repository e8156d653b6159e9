//! Both train passes of a step as one: two sets of images in every launch, each with batch statistics of its own.

use std::rc::Rc;

use super::driver::Driver;
use super::parameters::Parameters;
use super::scratch::Scratch;
use super::train::TrainPass;
use crate::engine::Result;

/// A train pass over two sets, with a scratch for two batches: that of the other passes has a capacity of one, and recorded graphs
/// hold its addresses.
pub struct Pair {
    pub pass: TrainPass,
    pub scratch: Scratch,
}

impl Pair {
    pub fn new(driver: &Rc<dyn Driver>, parameters: &Parameters, max_batch: usize) -> Result<Self> {
        Ok(Self {
            pass: TrainPass::new(driver, parameters, 2, max_batch)?,
            scratch: Scratch::new(driver, &parameters.layout, 2, max_batch)?,
        })
    }
}
