//! `[objective]`: what a training step minimises. The objectives themselves are `objective`'s.
//!
//! Checked by tests/recipes.rs. Called by the recipe.

use serde::Serialize;

use super::RecipeError;
use super::reader::Section;
use crate::names::named;

/// `[objective]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Objective {
    pub method: Method,
    /// Target (1 - s) one_hot + s / classes of the cross-entropy: in TRADES that of the clean images.
    pub label_smoothing: f64,
    /// Factor on the divergence: beta of TRADES, lambda of MART; unused by the others.
    pub beta: f64,
    /// Optimizer steps on each minibatch: m of Free-AT, 1 for the others.
    pub replays: usize,
}

named! {
    /// What a training step minimises.
    pub enum Method {
        /// CE(f(x), y), without an attack: the yardstick of cost.
        Standard = "standard",
        /// CE(f(x'), y) (Madry et al. 2018).
        PgdAt = "pgd-at",
        /// CE(f(x), y) + beta KL(f(x) || f(x')) (Zhang et al. 2019).
        Trades = "trades",
        /// Boosted CE(f(x'), y) + lambda (1 - p_y) KL(f(x) || f(x')) (Wang et al. 2020).
        Mart = "mart",
        /// CE(f(x'), y), one step from a random start (Wong et al. 2020).
        FgsmRs = "fgsm-rs",
        /// CE(f(x'), y), one step from strong noise, outside the ball (de Jorge et al. 2022).
        NFgsm = "n-fgsm",
        /// CE(f(x'), y), minibatches replayed, x' moved by each step's own gradient (Shafahi et al. 2019).
        Free = "free",
    }
}

impl Method {
    /// Steps of an attack whose number is part of the method.
    pub fn fixed_steps(self) -> Option<usize> {
        match self {
            Self::Standard => Some(0),
            Self::FgsmRs | Self::NFgsm | Self::Free => Some(1),
            Self::PgdAt | Self::Trades | Self::Mart => None,
        }
    }
}

impl Objective {
    pub(super) fn read(mut section: Section) -> Result<Self, RecipeError> {
        let method = section.name("method", Some(Method::PgdAt))?;
        let (beta, replays) = match method {
            Method::Mart => (5.0, 1),
            Method::Free => (6.0, 8),
            _ => (6.0, 1),
        };
        let objective = Self {
            method,
            label_smoothing: section.number("label_smoothing", 0.0..1.0, Some(0.0))?,
            beta: section.number("beta", 0.0..=1000.0, Some(beta))?,
            replays: section.integer("replays", 1..=1000, Some(replays))?,
        };
        if method == Method::Mart && objective.label_smoothing > 0.0 {
            let wanted = "0: mart's margin and its weight 1 - p_y are defined by one true class";
            return Err(section.value_error("label_smoothing", objective.label_smoothing, wanted));
        }
        if method != Method::Free && objective.replays > 1 {
            let wanted = format!("1: {method} trains once on each minibatch");
            return Err(section.value_error("replays", objective.replays, wanted));
        }
        section.finish()?;
        Ok(objective)
    }
}
