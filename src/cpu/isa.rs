//! The instruction sets that the loops are compiled for; the best that the CPU has is chosen, or the one that `SECATEUR_CPU` names.

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::columns::{self, Columns};
use super::tiles::{self, Products};
use crate::engine::{Error, Result};

/// An instruction set, and the loops that are compiled for it.
pub struct Isa {
    /// As `SECATEUR_CPU` has it.
    pub name: &'static str,
    present: fn() -> bool,
    /// Words are single f32.
    pub singles: Products,
    /// Words are pairs of bf16.
    pub pairs: Products,
    pub columns: Columns,
    /// Of loops over numbers.
    pub level: Level,
    /// Whether bf16 is multiplied by instructions of its own, and so faster than f32.
    pub native_bf16: bool,
}

/// What the compiler may use in [`vectorised`](super::vectorised).
#[derive(Clone, Copy)]
pub enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What the build is for.
    Build,
}

impl Isa {
    /// The fastest that this CPU has, or the one that `SECATEUR_CPU` names.
    ///
    /// # Errors
    /// [`Error::Setting`] for a name that is unknown or an instruction set that this CPU lacks.
    pub fn chosen() -> Result<&'static Self> {
        match std::env::var("SECATEUR_CPU") {
            Ok(name) => Self::named(Some(&name)),
            Err(std::env::VarError::NotPresent) => Self::named(None),
            Err(std::env::VarError::NotUnicode(name)) => Self::named(Some(&name.to_string_lossy())),
        }
    }

    pub fn named(name: Option<&str>) -> Result<&'static Self> {
        let present = || ISAS.iter().filter(|isa| (isa.present)());
        let known = |isas: &mut dyn Iterator<Item = &'static Isa>| {
            isas.map(|isa| isa.name).collect::<Vec<_>>().join(", ")
        };
        match name {
            None => Ok(present().next().expect("portable code runs anywhere")),
            Some(name) => present().find(|isa| isa.name == name).ok_or_else(|| {
                Error::Setting(match ISAS.iter().find(|isa| isa.name == name) {
                    Some(_) => format!("SECATEUR_CPU={name}: this CPU has {}", known(&mut present())),
                    None => format!("SECATEUR_CPU={name}: expected one of {}", known(&mut ISAS.iter())),
                })
            }),
        }
    }

    /// Every instruction set of this build that the CPU has, and the names of those that it lacks.
    #[cfg(test)]
    pub fn present() -> (Vec<&'static Self>, Vec<&'static str>) {
        let (present, lacking): (Vec<_>, Vec<_>) = ISAS.iter().partition(|isa| (isa.present)());
        (present, lacking.iter().map(|isa| isa.name).collect())
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    // With those that every server CPU since 2017 also has.
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
}

/// All of this build, the fastest first.
static ISAS: &[Isa] = &[
    #[cfg(target_arch = "x86_64")]
    Isa {
        name: "amx",
        present: || has_avx512() && amx::present(),
        level: Level::Avx512,
        native_bf16: true,
        columns: columns::AVX512,
        singles: tiles::AVX512_SINGLES,
        pairs: tiles::AMX_PAIRS,
    },
    #[cfg(target_arch = "x86_64")]
    Isa {
        name: "avx512-bf16",
        present: || has_avx512() && is_x86_feature_detected!("avx512bf16"),
        level: Level::Avx512,
        native_bf16: true,
        columns: columns::AVX512,
        singles: tiles::AVX512_SINGLES,
        pairs: tiles::AVX512_BF16_PAIRS,
    },
    #[cfg(target_arch = "x86_64")]
    Isa {
        name: "avx512",
        present: has_avx512,
        level: Level::Avx512,
        native_bf16: false,
        columns: columns::AVX512,
        singles: tiles::AVX512_SINGLES,
        pairs: tiles::AVX512_PAIRS,
    },
    #[cfg(target_arch = "x86_64")]
    Isa {
        name: "avx2",
        present: || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
        level: Level::Avx2,
        native_bf16: false,
        columns: columns::AVX2,
        singles: tiles::AVX2_SINGLES,
        pairs: tiles::AVX2_PAIRS,
    },
    #[cfg(target_arch = "aarch64")]
    Isa {
        name: "neon",
        present: || true,
        level: Level::Build,
        native_bf16: false,
        columns: columns::NEON,
        singles: tiles::NEON_SINGLES,
        pairs: tiles::NEON_PAIRS,
    },
    Isa {
        name: "portable",
        present: || true,
        level: Level::Build,
        native_bf16: false,
        columns: columns::PORTABLE,
        singles: tiles::PORTABLE_SINGLES,
        pairs: tiles::PORTABLE_PAIRS,
    },
];
