//! The steps of an attack on folded weights: in a step stand the convolutions, one kernel of the head, and the input gradients, the
//! last of which moves the images and packs them for the next step.
//!
//! All the steps of a micro-batch are one graph. Attacks under batch statistics take the operations one by one. Checked by
//! `tests/attack_loop.rs`, bit by bit against those operations, and `tests/graphs.rs`.

use super::driver::Address;
use super::engine::Cuda;
use super::eval::Ascent;
use crate::engine::{
    AscentLoss, AttackLoop, AttackSteps, Engine, Margin, Pass, Phase, Result, StopFlag, ascend_step_by_step,
};

/// Everything that a graph of an attack bakes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttackKey {
    batch: usize,
    steps: u32,
    step_size: u32,
    epsilon: u32,
    images: Address,
    perturbed: Address,
    ascent: Ascent,
    /// The linear layer's weight: the live one, or that of the average, which may move.
    linear: Address,
}

impl AttackLoop for Cuda {
    fn ascend(&mut self, attack: &AttackSteps) -> Result<()> {
        if attack.steps == 0 {
            return Ok(());
        }
        if let Pass::Train { slot } = attack.pass {
            ascend_step_by_step(self, attack)?;
            self.forget_train(slot);
            return Ok(());
        }
        let (batch, image) = self.sign_step(&attack.step, attack.images, attack.perturbed)?;
        if attack.loss == AscentLoss::Margin {
            Margin::BestWrong.check(self.network().classes)?;
        }
        let operand = match attack.loss.needs_clean_logits() {
            true => self.logits(attack.clean_logits, batch)?,
            false => self.sized(attack.labels, batch)?,
        };
        let ascent = Ascent { loss: attack.loss, operand };
        let perturbed = self.address(attack.perturbed)?;
        let key = AttackKey {
            batch,
            steps: attack.steps,
            step_size: attack.step.step_size.to_bits(),
            epsilon: attack.step.epsilon.to_bits(),
            images: self.address(attack.images)?,
            perturbed,
            ascent,
            linear: self.parameters.folded_linear()?.0,
        };

        self.driver.phase(Phase::AttackStep(1));
        self.pack(perturbed, batch)?;
        self.packed_images.set(None);
        let emulated = self.device().kind == "emulated";
        let Self { driver, parameters, eval, scratch, packed, attacks, stop, .. } = self;
        eval.forget();
        let steps = || {
            for step in 1..=attack.steps {
                stop.iter().try_for_each(StopFlag::check)?;
                // The first has begun with the packing of its images.
                if step > 1 {
                    driver.phase(Phase::AttackStep(step));
                }
                eval.attack_step(parameters, scratch, packed.address(), batch, &ascent, &image)?;
            }
            Ok(())
        };
        // A replay is heard out to its end: milliseconds on a GPU, minutes on the emulator.
        match stop {
            Some(_) if emulated => steps()?,
            _ => attacks.run(&**driver, key, steps)?,
        }
        self.packed_images.set(Some((perturbed, batch)));
        Ok(())
    }
}
