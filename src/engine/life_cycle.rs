//! What an engine has been through: which calls have something to work on.

use super::{Error, Pass, Result, WeightSet};

/// Passes whose activations are kept apart: evaluation, two train slots, a pair.
const KEPT: usize = 2 + Pass::SLOTS;

/// The state of an engine that decides what may come next, the same on every device.
#[derive(Default)]
pub(super) struct LifeCycle {
    weights: bool,
    average: bool,
    gradients: bool,
    /// Whether the folded weights are those of the present.
    folded: bool,
    /// Batch of each pass's last forward that can still go backward.
    forward: [Option<usize>; KEPT],
}

impl LifeCycle {
    pub fn loaded(&mut self) {
        *self = Self { weights: true, ..Self::default() };
    }
    pub fn average_loaded(&mut self, there: bool) {
        self.average = there;
        self.unfold();
    }
    pub fn stepped(&mut self, averaged: bool) {
        self.average |= averaged;
        self.weights_changed();
    }
    pub fn weights_changed(&mut self) {
        self.folded = false;
        self.forward = Default::default();
    }
    pub fn statistics_changed(&mut self) {
        self.folded = false;
    }
    pub fn folded(&mut self) {
        self.unfold();
        self.folded = true;
    }
    pub fn forwarded(&mut self, pass: Pass, batch: usize) {
        self.forward[pass.index()] = (pass != Pass::EvalF32).then_some(batch);
        // The running statistics moved. An evaluation pass may still go backward: its folded weights stand.
        self.folded &= pass.is_eval();
    }
    /// The last forward pass cannot go backward any more.
    pub fn forget(&mut self, pass: Pass) {
        self.forward[pass.index()] = None;
    }
    pub fn has_gradients(&mut self) {
        self.gradients = true;
    }
    pub fn has_average(&self) -> bool {
        self.average
    }

    fn unfold(&mut self) {
        self.folded = false;
        self.forget(Pass::Eval);
    }

    pub fn expect_weights(&self) -> Result<()> {
        expect(self.weights, || "no weights: call load_weights first".into())
    }

    /// Refuses a set of values that is not there.
    pub fn expect_set(&self, set: WeightSet) -> Result<()> {
        self.expect_weights()?;
        match set {
            WeightSet::Live | WeightSet::Momentum => Ok(()),
            WeightSet::Average => {
                expect(self.average, || "no moving average: a step with average_decay starts one".into())
            }
            WeightSet::Gradients => expect(self.gradients, || {
                "no parameter gradients: a backward pass that sets them comes first".into()
            }),
        }
    }

    /// Refuses a forward pass on nothing.
    pub fn expect_ready(&self, pass: Pass) -> Result<()> {
        self.expect_weights()?;
        expect(self.folded || !pass.is_eval(), || {
            format!("{pass}: the weights or running statistics changed; call fold_batch_norm first")
        })
    }

    /// The batch of the last forward pass.
    pub fn expect_forward(&self, pass: Pass) -> Result<usize> {
        self.forward[pass.index()]
            .ok_or_else(|| Error::Invalid(format!("{pass}: no forward pass on the present weights")))
    }
}

fn expect(holds: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Invalid(otherwise())) }
}
