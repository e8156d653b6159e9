//! The table of evaluation protocols: what `--protocol` and a recipe's names mean.
//!
//! | name | attack | step |
//! |---|---|---|
//! | `clean` | none | |
//! | `pgdN` | PGD, N steps from one uniform start | 2/255 |
//! | `pgdNxR` | the same from R starts; an image counts only if it withstands all | 2/255 |
//! | `pgdN-0.003` | PGD with a step of 0.003, the protocol of the TRADES and MART papers (with `--eps 0.031`) | 0.003 |
//!
//! A new family (CW, AutoAttack) is one more arm of [`Protocol`] and one more row here.

use std::fmt;
use std::str::FromStr;

use crate::attack::Pgd;
use crate::engine::{Noise, SignStep};
use crate::recipe::BatchNorm;

/// How accuracy is measured.
#[derive(Clone, Debug, PartialEq)]
pub enum Protocol {
    /// The images as they are.
    Clean,
    Pgd(PgdProtocol),
}

/// PGD on the cross-entropy from uniform starts in the ball, BatchNorm in eval mode.
#[derive(Clone, Debug, PartialEq)]
pub struct PgdProtocol {
    pub steps: usize,
    pub restarts: u32,
    pub step_size: StepSize,
}

/// Length of a step; the name of the protocol keeps the text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StepSize {
    /// 2/255: the common choice, and that of RobustBench-style tables.
    TwoLevels,
    /// 0.003: the TRADES and MART papers.
    Trades,
}

impl StepSize {
    pub fn value(self) -> f32 {
        match self {
            Self::TwoLevels => 2.0 / 255.0,
            Self::Trades => 0.003,
        }
    }
    pub fn text(self) -> &'static str {
        match self {
            Self::TwoLevels => "2/255",
            Self::Trades => "0.003",
        }
    }
}

impl PgdProtocol {
    /// The attack of this protocol in a ball of radius `epsilon`.
    pub fn pgd(&self, epsilon: f32) -> Pgd {
        Pgd {
            start: Some(Noise::Uniform { radius: epsilon }),
            step: SignStep { step_size: self.step_size.value(), epsilon },
            steps: self.steps,
            batch_norm: BatchNorm::Eval,
        }
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "clean" {
            return Ok(Self::Clean);
        }
        let wanted = || {
            format!(
                "protocol '{text}': expected clean, pgdN, pgdNxR or pgdN-0.003, such as pgd20 or pgd50x10"
            )
        };
        let rest = text.strip_prefix("pgd").ok_or_else(wanted)?;
        let (rest, step_size) = match rest.strip_suffix("-0.003") {
            Some(rest) => (rest, StepSize::Trades),
            None => (rest, StepSize::TwoLevels),
        };
        let (steps, restarts) = rest.split_once('x').unwrap_or((rest, "1"));
        let count =
            |text: &str| text.parse().ok().filter(|&n: &u32| (1..=10_000).contains(&n)).ok_or_else(wanted);
        Ok(Self::Pgd(PgdProtocol { steps: count(steps)? as usize, restarts: count(restarts)?, step_size }))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self::Pgd(pgd) = self else { return f.write_str("clean") };
        write!(f, "pgd{}", pgd.steps)?;
        if pgd.restarts > 1 {
            write!(f, "x{}", pgd.restarts)?;
        }
        match pgd.step_size {
            StepSize::TwoLevels => Ok(()),
            StepSize::Trades => f.write_str("-0.003"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_what_they_say_and_come_back() {
        for name in ["clean", "pgd10", "pgd20", "pgd50x10", "pgd20-0.003", "pgd7x3-0.003"] {
            assert_eq!(name.parse::<Protocol>().unwrap().to_string(), name);
        }
        let Protocol::Pgd(pgd) = "pgd50x10".parse().unwrap() else { panic!("not PGD") };
        assert_eq!((pgd.steps, pgd.restarts, pgd.step_size), (50, 10, StepSize::TwoLevels));
        for name in ["", "pgd", "pgd0", "pgdx", "pgd10x0", "pgd-5", "PGD10", "pgd10x", "aa", "pgd99999999999"]
        {
            let error = name.parse::<Protocol>().unwrap_err();
            assert!(error.contains(&format!("'{name}'")), "{error}");
        }
    }
}
