//! [`AttackLoop`] on the CPU: the operations one after another, rounded where that is asked for. Checked by `tests/attack_loop.rs`
//! and `tests/attack_precision.rs`.

use super::engine::Reference;
use super::invalid;
use super::numbers::Format;
use crate::engine::{AttackLoop, AttackSteps, Pass, Precision, Result, ascend_step_by_step};

impl AttackLoop for Reference {
    fn ascend(&mut self, attack: &AttackSteps) -> Result<()> {
        if attack.pass == Pass::Eval {
            self.eval.round(attack.precision);
        }
        let done = ascend_step_by_step(self, attack);
        self.eval.round(Precision::Device);
        done?;
        match attack.pass {
            Pass::Eval => self.eval_batch = None,
            Pass::Train { slot } => {
                self.train_batch.get_mut(slot).into_iter().for_each(|batch| *batch = None)
            }
        }
        Ok(())
    }

    fn check_precision(&self, precision: Precision) -> Result<()> {
        if precision != Precision::Device && self.numbers.format != Format::F32 {
            return invalid(
                "attack.precision: rounding to e4m3 is an experiment of --device cpu, not of cpu:bf16",
            );
        }
        Ok(())
    }
}
