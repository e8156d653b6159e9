//! `[model]`: the network.

use serde::Serialize;

use super::layers::WIDTHS;
use crate::config::{ConfigError, Refusal, Section};

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelConfig {
    /// Channels of the first stage: 64, or 16 for tests and CPU demonstrations.
    pub width: usize,
}

impl ModelConfig {
    pub(crate) fn read(mut section: Section) -> Result<Self, ConfigError> {
        let model = Self { width: section.integer("width", 1..=1024, Some(64))? };
        section.finish(model, Self::validate)
    }

    /// Refuses widths that no engine has.
    pub fn validate(&self) -> Result<(), Refusal> {
        match WIDTHS.contains(&self.width) {
            true => Ok(()),
            false => {
                let expected = WIDTHS.map(|width| width.to_string()).join(" or ");
                Err(Refusal::new("width", self.width, expected))
            }
        }
    }
}
