//! The operations of a device besides passes of the network, one a file: contract, check, CPU form, launch with its cost.
//!
//! The kernel of an operation is the file of the same name in `kernels/ops/`. A parameter struct mirrors the C++ one of the same
//! name, field by field; optional operands are `Address::NULL`.

pub mod apgd;
pub mod attack_steps;
pub mod awp;
pub mod bullet_train_score;
pub mod cross_entropy;
pub mod divergence;
pub mod fab;
pub mod gather_images;
pub mod last_layer;
mod margin;
pub mod margin_loss;
pub mod paired_loss;
pub mod perturb;
pub mod rows;
pub mod select;
pub mod sgd;
mod softmax;
pub mod square;
pub mod target_class;

pub use crate::engine::AscentLoss;
pub use apgd::{ApgdPhase, ApgdPoint, ApgdState, ApgdStep};
pub use attack_steps::AttackSteps;
pub use awp::{KeepStatistics, PerturbWeights};
pub use bullet_train_score::BulletTrainScore;
pub use cross_entropy::CrossEntropy;
pub use divergence::Divergence;
pub use fab::{ClassDifference, FabKeep, FabState, FabStep};
pub use gather_images::{Augment, GatherImages, ImageSet, Padding};
pub use last_layer::{GradientProducts, GradientSum, LastLayerGradients, RowNorms, StepLogits, Term};
pub use margin_loss::{Margin, MarginLoss};
pub use paired_loss::{PairedForm, PairedLoss, PairedLossOutputs};
pub use perturb::{Noise, Perturb};
pub use rows::{GatherRows, ScatterRows};
pub use select::{SelectAtLeast, SelectTopK};
pub use sgd::Sgd;
pub use softmax::{LossOutputs, NO_CLASS};
pub use square::{Pattern, Query, SearchState, SquareAccept, SquarePropose};
pub use target_class::TargetClass;

use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::engine::{Operands, Pass, Result};

/// An operation and its operands. `Output` is what the host learns from it; `()` where nothing is waited for.
pub trait Op<Output = ()> {
    /// Names every operand with its length, and whether it is written.
    ///
    /// # Errors
    /// Where one is not what the contract says.
    fn check(&self, operands: &mut Operands) -> Result<()>;

    /// Passes of the network that it makes, and of how many images. None of them can go backward afterwards.
    fn passes(&self) -> Option<(Pass, usize)> {
        None
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<Output>;

    fn cuda(&self, cuda: &mut Cuda) -> Result<Output>;
}
