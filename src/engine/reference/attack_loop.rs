//! [`AttackLoop`] on the CPU: the operations one after another.

use super::engine::Reference;
use crate::engine::{AttackLoop, AttackSteps, Pass, Result, ascend_step_by_step};

impl AttackLoop for Reference {
    fn ascend(&mut self, attack: &AttackSteps) -> Result<()> {
        ascend_step_by_step(self, attack)?;
        match attack.pass {
            Pass::Eval => self.eval_batch = None,
            Pass::Train { slot } => {
                self.train_batch.get_mut(slot).into_iter().for_each(|batch| *batch = None)
            }
        }
        Ok(())
    }
}
