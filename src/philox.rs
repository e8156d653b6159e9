//! Philox4x32-10: every random number of a run, on every device (`kernels/portable/philox.h` is its mirror).
//!
//! Counter-based (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a number is a pure
//! function of (seed, purpose, epoch, sample, step, index), so there is no state to save and no dependence on
//! batch layout. Checked against the known answers of the paper's reference distribution.

/// What a random number is for; part of the counter, so that no two uses ever share a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// The order of the samples in an epoch, and the split of the training set.
    Order = 1,
    /// Crop offsets and flips.
    Augment = 2,
    /// The random start of an attack in training.
    AttackStart = 3,
    /// Initial weights; `sample` is the parameter's position in the parameter table.
    Initialisation = 4,
    /// Generated images.
    Generation = 5,
    /// The random start of an attack in evaluation; `step` is the restart.
    EvaluationStart = 6,
    /// Draws of a selection of samples; `epoch` is the one it is made for.
    Selection = 7,
    /// The random start of the attack on the candidates of a selection.
    SelectionStart = 8,
    /// A random search over squares; `step` is the restart, block `n` the n-th query of an image.
    SquareQuery = 9,
    /// The random start of APGD; `step` is the restart, and the target where there is one.
    ApgdStart = 10,
    /// The Gumbel noise on the scores of a selection; `step` is the round.
    SelectionNoise = 11,
}

/// Everything a number depends on but its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub seed: u64,
    pub purpose: Purpose,
    pub epoch: u32,
    /// At most 24 bits.
    pub step: u32,
}

impl Key {
    /// The fourth counter word: the purpose in the high byte, the step below it.
    pub fn purpose_and_step(&self) -> u32 {
        debug_assert!(self.step < 1 << 24);
        (self.purpose as u32) << 24 | (self.step & 0x00ff_ffff)
    }

    /// Numbers `4 * block .. 4 * block + 4` of `sample`.
    pub fn block(&self, sample: u32, block: u32) -> [u32; 4] {
        philox4x32_10(
            [block, sample, self.epoch, self.purpose_and_step()],
            [self.seed as u32, (self.seed >> 32) as u32],
        )
    }
}

/// Ten rounds of Philox on a 128-bit counter under a 64-bit key.
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key[0] = key[0].wrapping_add(0x9E37_79B9);
            key[1] = key[1].wrapping_add(0xBB67_AE85);
        }
        let even = u64::from(counter[0]) * 0xD251_1F53;
        let odd = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (odd >> 32) as u32 ^ counter[1] ^ key[0],
            odd as u32,
            (even >> 32) as u32 ^ counter[3] ^ key[1],
            even as u32,
        ];
    }
    counter
}

/// Uniform on [0, 1) with 24 random bits: every value is exact in f32.
pub fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Uniform on [-radius, radius): one rounding, so the same bits on every device.
pub fn symmetric(word: u32, radius: f32) -> f32 {
    radius * (2.0 * unit(word) - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        // The published known-answer vectors for philox4x32, 10 rounds.
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn symmetric_stays_inside() {
        let key = Key { seed: 7, purpose: Purpose::AttackStart, epoch: 3, step: 0 };
        for block in 0..4096 {
            for word in key.block(11, block) {
                let value = symmetric(word, 8.0 / 255.0);
                assert!((-8.0 / 255.0..8.0 / 255.0).contains(&value), "{value}");
            }
        }
    }
}
