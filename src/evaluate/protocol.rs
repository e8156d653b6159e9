//! The table of evaluation protocols: what `--protocol` and a recipe's names mean.
//!
//! | name | attack | step |
//! |---|---|---|
//! | `clean` | none | |
//! | `fgsm` | one step from the clean image | the radius |
//! | `pgdN` | PGD, N steps from one uniform start | 2/255 |
//! | `pgdNxR` | the same from R starts; an image counts only if it is robust to all | 2/255 |
//! | `pgdN-0.003` | PGD with a step of 0.003, the protocol of the TRADES and MART papers (with `--eps 0.031`) | 0.003 |
//! | `cw` | PGD on the margin `max wrong z - z_y`, 100 steps from one uniform start | 2/255 |
//! | `apgd-ce`, `apgd-t`, `fab-t`, `square` | one part of AutoAttack, on the images that are predicted right | |
//! | `aa` | AutoAttack, standard version: the four parts in this order, each on the survivors | |
//!
//! `fgsm`, `pgd` and `cw` evaluate the end point of each start, as their papers do; the others any point that they meet.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::attack::{Apgd, Fab, Pgd, Search, Square};
use crate::engine::{Pass, SignStep};
use crate::ops::{AscentLoss, Noise};

/// How accuracy is measured.
#[derive(Clone, Debug, PartialEq)]
pub enum Protocol {
    /// The images as they are.
    Clean,
    /// One sign step of the whole radius.
    Fgsm,
    Pgd(PgdProtocol),
    /// PGD on the margin loss.
    Cw,
    /// One part of AutoAttack by itself.
    Part(Part),
    AutoAttack,
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

/// The parts of AutoAttack's standard version, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    #[serde(rename = "apgd-ce")]
    ApgdCe,
    #[serde(rename = "apgd-t")]
    ApgdT,
    #[serde(rename = "fab-t")]
    FabT,
    #[serde(rename = "square")]
    Square,
}

/// Steps of the CW protocol.
const CW_STEPS: usize = 100;

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
            pass: Pass::Eval,
        }
    }
}

impl Part {
    pub const ALL: [Self; 4] = [Self::ApgdCe, Self::ApgdT, Self::FabT, Self::Square];

    pub fn name(self) -> &'static str {
        Protocol::Part(self).word()
    }

    /// The attack with AutoAttack's settings in a ball of radius `epsilon`.
    pub fn search(self, epsilon: f32) -> Box<dyn Search> {
        match self {
            Self::ApgdCe => Box::new(Apgd::cross_entropy(epsilon)),
            Self::ApgdT => Box::new(Apgd::targeted(epsilon)),
            Self::FabT => Box::new(Fab::standard(epsilon)),
            Self::Square => Box::new(Square::standard(epsilon)),
        }
    }

    /// Tells the random numbers of the parts apart; 0 is nobody's.
    pub(super) fn number(self) -> u32 {
        1 + self as u32
    }
}

/// The names that are one word.
const WORDS: [(&str, Protocol); 8] = [
    ("clean", Protocol::Clean),
    ("fgsm", Protocol::Fgsm),
    ("cw", Protocol::Cw),
    ("apgd-ce", Protocol::Part(Part::ApgdCe)),
    ("apgd-t", Protocol::Part(Part::ApgdT)),
    ("fab-t", Protocol::Part(Part::FabT)),
    ("square", Protocol::Part(Part::Square)),
    ("aa", Protocol::AutoAttack),
];

/// Protocols of one evaluation at most.
const MAX_PROTOCOLS: usize = 100;

impl Protocol {
    /// Refuses a list that names one twice, or more than anybody waits for.
    pub fn check_list(list: &[Self]) -> Result<(), String> {
        if list.len() > MAX_PROTOCOLS {
            return Err(format!("{} protocols, expected at most {MAX_PROTOCOLS}", list.len()));
        }
        match (0..list.len()).find(|&at| list[..at].contains(&list[at])) {
            Some(at) => {
                Err(format!("{}: named twice (place {}), expected each protocol once", list[at], at + 1))
            }
            None => Ok(()),
        }
    }

    /// Its name, where that is one word.
    fn word(&self) -> &'static str {
        WORDS.iter().find(|(_, protocol)| protocol == self).map_or("", |(word, _)| word)
    }

    /// The sign-step attack of this protocol, where it is one.
    pub fn pgd(&self, epsilon: f32) -> Option<Pgd> {
        let of = |steps| PgdProtocol { steps, restarts: 1, step_size: StepSize::TwoLevels }.pgd(epsilon);
        match self {
            Self::Fgsm => Some(Pgd { start: None, step: SignStep { step_size: epsilon, epsilon }, ..of(1) }),
            Self::Pgd(pgd) => Some(pgd.pgd(epsilon)),
            Self::Cw => Some(of(CW_STEPS)),
            Self::Clean | Self::Part(_) | Self::AutoAttack => None,
        }
    }

    /// What its sign steps ascend; the parts of AutoAttack have losses of their own.
    pub fn ascends(&self) -> AscentLoss {
        match self {
            Self::Cw => AscentLoss::Margin,
            Self::Clean | Self::Fgsm | Self::Pgd(_) | Self::Part(_) | Self::AutoAttack => {
                AscentLoss::CrossEntropy
            }
        }
    }

    /// The parts of AutoAttack that this protocol runs.
    pub fn parts(&self) -> &[Part] {
        match self {
            Self::Part(part) => std::slice::from_ref(part),
            Self::AutoAttack => &Part::ALL,
            _ => &[],
        }
    }

    /// Whether the attack follows gradients.
    pub fn follows_gradients(&self) -> bool {
        match self {
            Self::Fgsm | Self::Pgd(_) | Self::Cw => true,
            Self::Part(part) => *part != Part::Square,
            Self::Clean | Self::AutoAttack => false,
        }
    }

    /// Whether the attack ascends a difference of logits, which keeps its slope where the softmax saturates.
    pub fn is_on_margins(&self) -> bool {
        matches!(self, Self::Cw | Self::Part(Part::ApgdT | Part::FabT))
    }

    /// Whether the attack takes many steps on the cross-entropy.
    pub fn is_on_cross_entropy(&self) -> bool {
        match self {
            Self::Pgd(pgd) => pgd.steps >= 10,
            other => *other == Self::Part(Part::ApgdCe),
        }
    }

    /// Starts that an image must be robust to.
    pub fn restarts(&self) -> u32 {
        match self {
            Self::Pgd(pgd) => pgd.restarts,
            Self::Fgsm | Self::Cw => 1,
            _ => 0,
        }
    }

    /// Length of a step as a text, for sign-step attacks of a fixed one.
    pub fn step_size(&self) -> Option<&'static str> {
        match self {
            Self::Pgd(pgd) => Some(pgd.step_size.text()),
            Self::Cw => Some(StepSize::TwoLevels.text()),
            _ => None,
        }
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((_, protocol)) = WORDS.iter().find(|(word, _)| *word == text) {
            return Ok(protocol.clone());
        }
        let expected = || {
            format!(
                "protocol '{text}': expected clean, fgsm, pgdN, pgdNxR or pgdN-0.003 (such as pgd20 or pgd50x10), cw, \
                 apgd-ce, apgd-t, fab-t, square or aa"
            )
        };
        let rest = text.strip_prefix("pgd").ok_or_else(expected)?;
        let (rest, step_size) = match rest.strip_suffix("-0.003") {
            Some(rest) => (rest, StepSize::Trades),
            None => (rest, StepSize::TwoLevels),
        };
        let (steps, restarts) = rest.split_once('x').unwrap_or((rest, "1"));
        let count =
            |text: &str| text.parse().ok().filter(|&n: &u32| (1..=10_000).contains(&n)).ok_or_else(expected);
        Ok(Self::Pgd(PgdProtocol { steps: count(steps)? as usize, restarts: count(restarts)?, step_size }))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self::Pgd(pgd) = self else { return f.write_str(self.word()) };
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
        let plain = ["clean", "fgsm", "pgd10", "pgd20", "pgd50x10", "pgd20-0.003", "pgd7x3-0.003", "cw"];
        for name in plain.into_iter().chain(["apgd-ce", "apgd-t", "fab-t", "square", "aa"]) {
            assert_eq!(name.parse::<Protocol>().unwrap().to_string(), name);
        }
        let Protocol::Pgd(pgd) = "pgd50x10".parse().unwrap() else { panic!("not PGD") };
        assert_eq!((pgd.steps, pgd.restarts, pgd.step_size), (50, 10, StepSize::TwoLevels));
        for name in
            ["", "pgd", "pgd0", "pgdx", "pgd10x0", "pgd-5", "PGD10", "pgd10x", "aaa", "pgd99999999999"]
        {
            let error = name.parse::<Protocol>().unwrap_err();
            assert!(error.contains(&format!("'{name}'")), "{error}");
        }
        assert_eq!(Protocol::AutoAttack.parts(), Part::ALL);
        assert_eq!(Protocol::Fgsm.pgd(0.03).unwrap().step, SignStep { step_size: 0.03, epsilon: 0.03 });
        assert_eq!(Protocol::Cw.pgd(0.03).unwrap().steps, 100);
    }
}
