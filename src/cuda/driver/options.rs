//! Choices that are made when a device is opened and hold as long as it is open; the results are the same up to the rounding of
//! f32, whose order the kernels differ in.

use std::fmt;
use std::num::NonZeroUsize;

use crate::engine::{Error, Result};

/// How the launches of a device are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Kernels for sm_90a alone that are not used.
    pub wgmma_off: WgmmaOff,
    /// Whether a kernel fetches its tensor maps before it waits for the launches before it, on a Hopper.
    pub prefetch_maps: bool,
    /// Whether every kernel asks for the largest share of a multiprocessor's memory that can be shared memory, on a Hopper. Kernels
    /// that ask for different shares cannot run on one multiprocessor at a time, so none starts while another ends.
    pub carve_out: bool,
    /// Whether a launch may start before the one before it has ended, where the device can (programmatic dependent launch).
    pub dependent_launch: bool,
    /// Whether an attack or a pass that comes again may be replayed as one recorded piece of work, where the device can (CUDA
    /// graphs).
    pub graphs: bool,
    /// Images that the first stage takes at a time in evaluation passes; as many as the device's cache holds where `None`.
    pub first_stage_images: Option<NonZeroUsize>,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self {
            wgmma_off: WgmmaOff::NONE,
            prefetch_maps: true,
            carve_out: true,
            dependent_launch: true,
            graphs: true,
            first_stage_images: None,
        }
    }
}

impl DeviceOptions {
    /// The default, but for the kernels that SECATEUR_WGMMA switches off.
    ///
    /// # Errors
    /// [`Error::Setting`] where it names something else.
    pub fn from_environment() -> Result<Self> {
        Ok(Self { wgmma_off: WgmmaOff::from_environment()?, ..Self::default() })
    }
}

/// A group of kernels on wgmma that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WgmmaSwitch {
    /// All of them.
    All,
    Forward,
    InputGradient,
    WeightGradient,
    /// The blocks of forward convolutions and input gradients.
    Resident,
    Block128x256,
    Block64x512,
    Block64x256,
    Split,
}

impl WgmmaSwitch {
    pub const ALL: [Self; 9] = [
        Self::All,
        Self::Forward,
        Self::InputGradient,
        Self::WeightGradient,
        Self::Resident,
        Self::Block128x256,
        Self::Block64x512,
        Self::Block64x256,
        Self::Split,
    ];

    /// As SECATEUR_WGMMA has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "off",
            Self::Forward => "forward",
            Self::InputGradient => "input-gradient",
            Self::WeightGradient => "weight-gradient",
            Self::Resident => "resident",
            Self::Block128x256 => "128x256",
            Self::Block64x512 => "64x512",
            Self::Block64x256 => "64x256",
            Self::Split => "split",
        }
    }
}

/// What is switched off of the kernels on wgmma; another of their blocks takes over where one serves, else mma.sync does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct WgmmaOff(u16);

impl WgmmaOff {
    pub const NONE: Self = Self(0);

    /// Of [`WgmmaOff::parse`], SECATEUR_WGMMA.
    pub fn from_environment() -> Result<Self> {
        let asked = std::env::var_os("SECATEUR_WGMMA").unwrap_or_default();
        Self::parse(&asked.to_string_lossy())
    }

    /// A list of names, separated by commas; nothing is off in an empty one, and in `on`.
    ///
    /// # Errors
    /// [`Error::Setting`] for a name that no switch has.
    pub fn parse(list: &str) -> Result<Self> {
        if matches!(list, "" | "on") {
            return Ok(Self::NONE);
        }
        list.split(',').try_fold(Self::NONE, |off, name| {
            let known = WgmmaSwitch::ALL.into_iter().find(|switch| switch.name() == name.trim());
            known.map(|switch| off.with(switch)).ok_or_else(|| {
                let names = WgmmaSwitch::ALL.map(WgmmaSwitch::name).join(", ");
                Error::Setting(format!(
                    "SECATEUR_WGMMA={list}: '{}' is none of {names}; expected some of them with commas between, or on",
                    name.trim()
                ))
            })
        })
    }

    #[must_use]
    pub const fn with(self, switch: WgmmaSwitch) -> Self {
        Self(self.0 | 1 << switch as u16)
    }

    /// Whether this group is off, by itself or with all.
    pub const fn has(self, switch: WgmmaSwitch) -> bool {
        self.0 & (1 << switch as u16 | 1 << WgmmaSwitch::All as u16) != 0
    }

    /// What is off, by name.
    pub fn names(self) -> Vec<&'static str> {
        let named = |switch: &WgmmaSwitch| self.0 & (1 << *switch as u16) != 0;
        WgmmaSwitch::ALL.into_iter().filter(named).map(WgmmaSwitch::name).collect()
    }
}

impl fmt::Debug for WgmmaOff {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_switch_off_what_they_name() {
        for list in ["", "on"] {
            assert_eq!(WgmmaOff::parse(list).unwrap(), WgmmaOff::NONE);
        }
        let off = WgmmaOff::parse("split, forward").unwrap();
        assert_eq!(off.names(), ["forward", "split"]);
        assert!(off.has(WgmmaSwitch::Forward) && !off.has(WgmmaSwitch::InputGradient));
        for switch in WgmmaSwitch::ALL {
            assert_eq!(WgmmaOff::parse(switch.name()).unwrap().names(), [switch.name()]);
            assert!(WgmmaOff::parse("off").unwrap().has(switch));
        }
    }

    #[test]
    fn a_name_that_no_switch_has_is_refused_with_those_that_there_are() {
        for (list, wrong) in
            [("forwad", "forwad"), ("forward,128x265", "128x265"), ("forward,", ""), ("no", "no")]
        {
            let message = WgmmaOff::parse(list).unwrap_err().to_string();
            let begin = format!(
                "SECATEUR_WGMMA={list}: '{wrong}' is none of off, forward, input-gradient, weight-gradient, resident, 128x256, \
                 64x512, 64x256, split;"
            );
            assert!(message.starts_with(&begin), "{message}");
        }
    }
}
