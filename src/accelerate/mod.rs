//! Fewer attack steps for the same training: what any objective can use in place of plain PGD.
//!
//! A new acceleration is one more file here with its row, and one line in the table [`Acceleration`].

mod bullet_train;
mod config;
mod groups;
mod replays;

pub use bullet_train::BulletTrain;
pub use config::AccelerateConfig;
pub use groups::{Grouping, Groups, quantile};
pub use replays::Replays;

use crate::attack::{Adversary, ScheduledPgd};
use crate::names::table;

/// What an acceleration is.
pub struct AccelerationRow {
    pub name: &'static str,
    /// The name as its paper writes it.
    pub title: &'static str,
    pub about: &'static str,
    pub paper: &'static str,
    /// Share of the full attack's steps that an image is taken to get before a run has told; the rest of the cost follows from
    /// [`AccelerationRow::groups`].
    pub step_share: f64,
    /// Whether it divides each batch into groups, which it attacks apart. That needs BatchNorm in eval mode, and costs a clean
    /// forward of each image and a forward of each attacked one (none where the steps are replays).
    pub groups: bool,
    /// The attack of every batch; the first argument is the full one.
    pub adversary: fn(ScheduledPgd, &AccelerateConfig) -> Box<dyn Adversary>,
    /// The same for an attack whose steps are the replays of a minibatch; `None` where all images move in each.
    pub replays: fn(&AccelerateConfig) -> Option<Replays>,
}

table! {
    /// What makes the attack cheaper.
    pub enum Acceleration: AccelerationRow {
        None = NONE,
        BulletTrain = bullet_train::ROW,
    }
}

const NONE: AccelerationRow = AccelerationRow {
    name: "none",
    title: "none",
    about: "the full attack on every image",
    paper: "",
    step_share: 1.0,
    groups: false,
    adversary: |full, _| Box::new(full),
    replays: |_| None,
};
