//! Choices that are made when a device is opened and hold as long as it is open; the results are the same up to the rounding of
//! f32, whose order the kernels differ in.

use std::fmt;
use std::num::NonZeroUsize;

use crate::engine::{Error, Result};
use crate::names::{Named, named};

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

named! {
    /// A group of kernels on wgmma that can be switched off, as SECATEUR_WGMMA names it.
    pub enum WgmmaSwitch {
        /// All of them.
        All = "off",
        Forward = "forward",
        InputGradient = "input-gradient",
        WeightGradient = "weight-gradient",
        /// The blocks of forward convolutions and input gradients.
        Resident = "resident",
        Block128x256 = "128x256",
        Block64x512 = "64x512",
        Block64x256 = "64x256",
        Split = "split",
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
            WgmmaSwitch::from_name(name.trim()).map(|switch| off.with(switch)).ok_or_else(|| {
                let names = WgmmaSwitch::ALL.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
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
        let off = WgmmaSwitch::ALL.iter().filter(|(_, switch)| self.0 & (1 << *switch as u16) != 0);
        off.map(|(name, _)| *name).collect()
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
        for &(_, switch) in WgmmaSwitch::ALL {
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
