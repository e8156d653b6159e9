//! The steps of a sign-step attack on one micro-batch, as one operation: a device that knows what comes next can fuse what stands
//! between two passes, and do all the steps as one piece of work.
//!
//! On folded weights our kernels take a step by convolutions, one kernel of the head, and input gradients, the last of which moves
//! the images and packs them for the next step; all the steps of a micro-batch are one graph. Elsewhere the operations that it is
//! made of follow one another.

use super::{CrossEntropy, Divergence, LossOutputs, Margin, MarginLoss, Op};
use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::cuda::driver::Address;
use crate::cuda::eval::{Ascent, Start};
use crate::engine::backend::Backend;
use crate::engine::{
    AscentLoss, GradRequest, ImageGradient, Operands, Pass, Phase, Result, SignStep, StopFlag, Tensor,
};
use crate::model::layers::IMAGE_LEN;

/// Sign steps on the images of a batch, each a [`Phase::AttackStep`].
#[derive(Clone, Copy, Debug)]
pub struct AttackSteps<'a> {
    /// Of one set of images.
    pub pass: Pass,
    pub loss: AscentLoss,
    /// Unused where the loss needs clean logits.
    pub labels: &'a Tensor<u32>,
    /// `batch x classes`; unused where the loss needs none.
    pub clean_logits: &'a Tensor<f32>,
    pub step: SignStep,
    pub steps: u32,
    /// The clean images x, `batch x 32 x 32 x 3`, around which the ball lies.
    pub images: &'a Tensor<f32>,
    /// The images x' that move.
    pub perturbed: &'a Tensor<f32>,
    /// Workspace for the logits and what the loss writes; unspecified afterwards.
    pub logits: &'a Tensor<f32>,
    pub outputs: LossOutputs<'a>,
}

/// Everything that a graph of an attack bakes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttackKey {
    pass: Pass,
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

impl AttackSteps<'_> {
    fn batch(&self) -> usize {
        self.images.len() / IMAGE_LEN
    }

    /// By the operations that it is made of, one after another.
    fn one_by_one<B: Backend>(
        &self,
        backend: &mut B,
        check_stop: impl Fn(&B) -> Result<()>,
        loss: impl Fn(&mut B) -> Result<()>,
    ) -> Result<()> {
        let AttackSteps { pass, step, images, perturbed, .. } = *self;
        for number in 1..=self.steps {
            if pass.is_eval() {
                check_stop(backend)?;
            }
            if let Some(driver) = backend.driver() {
                driver.phase(Phase::AttackStep(number));
            }
            backend.written(&[self.logits.view()]);
            backend.forward(pass, &[perturbed], &[self.logits])?;
            let LossOutputs { losses, predictions, logit_gradient } = self.outputs;
            backend.written(&[losses.view(), predictions.view(), logit_gradient.view()]);
            loss(backend)?;
            backend.written(&[perturbed.view()]);
            let request = GradRequest::step(step, images, perturbed);
            backend.backward(pass, &[logit_gradient], &request)?;
        }
        Ok(())
    }

    // The loss as an operation. Scale 1 and not 1 / batch: only the sign matters, and small factors would waste the range of bf16.
    fn cross_entropy(&self) -> CrossEntropy<'_> {
        let AttackSteps { logits, labels, outputs, .. } = *self;
        CrossEntropy { smoothing: 0.0, scale: 1.0, logits, labels, weights: None, outputs }
    }
    fn divergence(&self) -> Divergence<'_> {
        let AttackSteps { logits, clean_logits, outputs, .. } = *self;
        Divergence { scale: 1.0, target_logits: clean_logits, logits, outputs }
    }
    fn margin(&self) -> MarginLoss<'_> {
        let AttackSteps { logits, labels, outputs, .. } = *self;
        MarginLoss { margin: Margin::BestWrong, logits, labels, outputs }
    }
}

impl Op for AttackSteps<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        let batch = operands.rows_of(self.images, IMAGE_LEN)?;
        let logits = batch * operands.classes();
        if self.loss == AscentLoss::Margin {
            Margin::BestWrong.check(operands, batch)?;
        }
        match self.loss.needs_clean_logits() {
            true => operands.reads(self.clean_logits, logits)?,
            false => operands.reads(self.labels, batch)?,
        }
        operands.reads(self.images, batch * IMAGE_LEN)?;
        operands.writes(self.perturbed, batch * IMAGE_LEN)?;
        operands.writes(self.logits, logits)?;
        self.outputs.check(operands, batch)
    }

    fn passes(&self) -> Option<(Pass, usize)> {
        (self.steps > 0).then(|| (self.pass, self.batch()))
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        self.one_by_one(cpu, Cpu::check_stop, |cpu| match self.loss {
            AscentLoss::CrossEntropy => self.cross_entropy().cpu(cpu),
            AscentLoss::Divergence => self.divergence().cpu(cpu),
            AscentLoss::Margin => self.margin().cpu(cpu),
        })
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        if self.steps == 0 {
            return Ok(());
        }
        if !self.pass.is_eval() {
            return self.one_by_one(
                cuda,
                |_| Ok(()),
                |cuda| match self.loss {
                    AscentLoss::CrossEntropy => self.cross_entropy().cuda(cuda),
                    AscentLoss::Divergence => self.divergence().cuda(cuda),
                    AscentLoss::Margin => self.margin().cuda(cuda),
                },
            );
        }
        let operand = match self.loss.needs_clean_logits() {
            true => cuda.address(self.clean_logits)?,
            false => cuda.address(self.labels)?,
        };
        let (batch, ascent) = (self.batch(), Ascent { loss: self.loss, operand });
        let key = AttackKey {
            pass: self.pass,
            batch,
            steps: self.steps,
            step_size: self.step.step_size.to_bits(),
            epsilon: self.step.epsilon.to_bits(),
            images: cuda.address(self.images)?,
            perturbed: cuda.address(self.perturbed)?,
            ascent,
            linear: cuda.parameters.folded_linear()?.0,
        };
        let (step, images, perturbed) = (self.step, self.images, self.perturbed);
        let image = cuda.image_epilogue(&ImageGradient::Step { step, images, perturbed })?;

        cuda.driver.phase(Phase::AttackStep(1));
        cuda.pack(perturbed, batch)?;
        let emulated = cuda.driver.info().kind == "emulated";
        let Cuda { driver, parameters, eval, scratch, attacks, stop, .. } = cuda;
        let launches = eval.launches(parameters, scratch, self.pass, batch)?;
        let steps = || {
            for step in 1..=self.steps {
                stop.iter().try_for_each(StopFlag::check)?;
                // The first has begun with the packing of its images.
                if step > 1 {
                    driver.phase(Phase::AttackStep(step));
                }
                launches.forward(None)?;
                launches.backward(Start::Ascent(ascent), &image)?;
            }
            Ok(())
        };
        // A replay is not interrupted: milliseconds on a GPU, minutes on the emulator.
        match stop {
            Some(_) if emulated => steps(),
            _ => attacks.run(&**driver, key, steps),
        }
    }
}
