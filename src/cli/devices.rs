//! `--devices`: how many engines train together, and on which devices.

use std::str::FromStr;

use anyhow::bail;

use crate::collective::RankInfo;
use crate::engine::DeviceChoice;

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    /// So many.
    Count(usize),
    /// GPUs by their numbers.
    Gpus(Vec<usize>),
    /// One process a device, whose rank torchrun or Slurm put into its environment.
    Environment,
}

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "env" {
            return Ok(Self::Environment);
        }
        let expected = "expected a number of devices, GPUs such as 0-7 or 0,2,3, or env";
        let number = |text: &str| text.parse::<usize>().map_err(|_| expected.to_string());
        if !text.contains([',', '-']) {
            return match number(text)? {
                0 => Err("0 devices, expected 1 at least".into()),
                count => Ok(Self::Count(count)),
            };
        }
        let mut gpus = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                None => gpus.push(number(part)?),
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last || last - first >= MOST {
                        return Err(format!("GPUs {part}, expected a range upward of {MOST} GPUs at most"));
                    }
                    gpus.extend(first..=last);
                }
            }
        }
        match (1..gpus.len()).find(|&at| gpus[..at].contains(&gpus[at])) {
            Some(at) => Err(format!("GPU {} twice, expected each once", gpus[at])),
            None => Ok(Self::Gpus(gpus)),
        }
    }
}

/// GPUs of one machine.
const MOST: usize = 1024;

/// The ranks of a run and their devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ranks {
    /// Ranks of this process, one a device.
    Threads(Vec<DeviceChoice>),
    /// This process is one rank.
    Process(RankInfo, DeviceChoice),
}

impl Ranks {
    /// `--device` and `--devices` together; `None` for one engine.
    pub fn new(device: DeviceChoice, devices: Option<&Devices>) -> anyhow::Result<Option<Self>> {
        let Some(devices) = devices else { return Ok(None) };
        if matches!(device, DeviceChoice::Cuda(ordinal) if ordinal > 0) {
            bail!("--devices: --device names one GPU; name those of --devices alone, with --device cuda");
        }
        // Several of whatever there is would be several of the CPU on a machine whose GPUs are missing.
        let gpu = matches!(device, DeviceChoice::Auto | DeviceChoice::Cuda(_));
        let of = |ordinal| if gpu { DeviceChoice::Cuda(ordinal) } else { device };
        Ok(Some(match devices {
            Devices::Gpus(_) if !gpu => {
                bail!(
                    "--devices names GPUs by their numbers; the CPU and the emulator take a number of engines"
                )
            }
            Devices::Gpus(gpus) => Self::Threads(gpus.iter().copied().map(of).collect()),
            Devices::Count(count) => Self::Threads((0..*count).map(of).collect()),
            Devices::Environment => {
                let info = RankInfo::from_environment()?;
                let device = of(info.local_rank);
                Self::Process(info, device)
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_a_number_a_list_or_the_environment() {
        for (text, expected) in [
            ("1", Devices::Count(1)),
            ("8", Devices::Count(8)),
            ("0-3", Devices::Gpus(vec![0, 1, 2, 3])),
            ("4,0-2,7", Devices::Gpus(vec![4, 0, 1, 2, 7])),
            ("5-5", Devices::Gpus(vec![5])),
            ("env", Devices::Environment),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for (text, expected) in [
            ("0", "0 devices"),
            ("", "expected a number"),
            ("-2", "expected a number"),
            ("0,1,0", "GPU 0 twice"),
            ("0-2,1", "GPU 1 twice"),
            ("3-1", "a range upward"),
            ("0-99999999999", "1024 GPUs at most"),
            ("0,", "expected a number"),
            ("all", "expected a number"),
        ] {
            let error = text.parse::<Devices>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn engines_are_those_of_the_device() {
        let ranks = |device: DeviceChoice, devices: &str| {
            Ranks::new(device, Some(&devices.parse().unwrap())).map_err(|error| error.to_string())
        };
        let threads = |devices: &[DeviceChoice]| Ok(Some(Ranks::Threads(devices.to_vec())));
        let [first, second, fourth] = [0, 1, 3].map(DeviceChoice::Cuda);
        assert_eq!(ranks(DeviceChoice::Emulated, "2"), threads(&[DeviceChoice::Emulated; 2]));
        assert_eq!(ranks(DeviceChoice::Cpu, "1"), threads(&[DeviceChoice::Cpu]));
        assert_eq!(ranks(DeviceChoice::Auto, "2"), threads(&[first, second]));
        assert_eq!(ranks(DeviceChoice::Cuda(0), "3,0"), threads(&[fourth, first]));
        assert!(ranks(DeviceChoice::Cpu, "0-3").unwrap_err().contains("names GPUs"));
        assert!(ranks(DeviceChoice::Cuda(2), "4").unwrap_err().contains("names one GPU"));
        assert_eq!(Ranks::new(DeviceChoice::Auto, None).unwrap(), None);
    }
}
