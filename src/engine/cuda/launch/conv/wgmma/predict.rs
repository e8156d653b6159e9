//! How long a convolution on wgmma should take: clocks of its tensor cores, its second-level cache and its shared memory.
//!
//! Rates are those of an H100 or H200, a multiprocessor and clock: 4,096 bf16 operations, about 35 bytes from the second-level
//! cache where all read at once and up to 64 where others are idle, 128 bytes of shared memory. A block's products take as long
//! as the slowest of the three. A measurement that beats this is a finding about these numbers. Called by the ladder's bench,
//! which prints it beside what it measures; checked here against the figures that one can work out by hand.

use super::Rung;
use super::plan::{BLOCKS, Block, EXCHANGE_CLOCKS, GROUP_CHANNELS, GROUP_PIXELS, Loads, Planned};

const FLOPS_A_CLOCK: f64 = 4096.0;
const CACHE_BYTES_A_CLOCK: f64 = 35.0;
const MOST_CACHE_BYTES_A_CLOCK: f64 = 64.0;
const SHARED_BYTES_A_CLOCK: f64 = 128.0;
/// Clocks a second under load: an H200 holds about this with its tensor cores busy.
const CLOCK: f64 = 1.6e9;
/// From the first load to the first product, and from the last product to the last store.
const FILL: f64 = 1_000.0;
const EPILOGUE: f64 = 2_400.0;
/// Bytes that m64n256k16 reads: 64 and 256 rows of 16 bf16.
const PRODUCT_BYTES: usize = (64 + 256) * 16 * 2;

/// What bounds the products of a tile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    pub seconds: f64,
    /// `tensor`, `cache` or `shared`.
    pub bound: &'static str,
}

/// Clocks of the products that one block has of a tile: tensor cores, second-level cache, shared memory.
fn tile_clocks(planned: &Planned, phase: usize) -> [f64; 3] {
    let phase = planned.plan.phases[phase];
    let slots = &planned.plan.slots[phase.first_slot as usize..(phase.first_slot + phase.slots) as usize];
    let taps: usize = slots.iter().map(|slot| usize::from(slot.taps)).sum();
    let (channel_groups, pixel_groups) = planned.block.groups();
    let groups = channel_groups * pixel_groups;
    let chunks = planned.plan.chunks as usize / planned.block.parts();
    // Each tap is four products of 16 deep a warpgroup.
    let products = chunks * taps * 4 * groups;
    let flops = products * 2 * GROUP_CHANNELS * GROUP_PIXELS * 16;
    let pixels = chunks * slots.len() * pixel_groups * planned.plan.slot_bytes as usize;
    let weights = match planned.block {
        Block::Resident => 0,
        _ => chunks * taps * channel_groups * GROUP_CHANNELS * 128,
    };
    let loaded = (pixels + weights) as f64;
    let busy = (planned.tiles * planned.block.parts()).min(BLOCKS) as f64 / BLOCKS as f64;
    [
        flops as f64 / FLOPS_A_CLOCK,
        loaded / (CACHE_BYTES_A_CLOCK / busy).min(MOST_CACHE_BYTES_A_CLOCK),
        (products as f64 * PRODUCT_BYTES as f64 + loaded) / SHARED_BYTES_A_CLOCK,
    ]
}

/// Predicts a forward convolution or an input gradient.
pub fn predict(planned: &Planned) -> Prediction {
    // A persistent block loads the next tile behind the products of the last, and two warpgroups that take turns hide what
    // follows the products as well.
    let around = match (planned.block, planned.rung.blocks.is_some()) {
        (Block::Resident, true) => 0.0,
        (Block::Split, true) => EXCHANGE_CLOCKS + EPILOGUE / 2.0,
        (Block::Split, false) => FILL + EXCHANGE_CLOCKS + EPILOGUE / 2.0,
        (_, true) => EPILOGUE,
        (_, false) => FILL + EPILOGUE,
    };
    let rounds = (planned.tiles * planned.block.parts()).div_ceil(BLOCKS) as f64;
    let phases = planned.plan.phase_count as usize;
    // Phases differ in their taps; a round has its share of each.
    let clocks: Vec<[f64; 3]> = (0..phases).map(|phase| tile_clocks(planned, phase)).collect();
    let slowest = |clocks: &[f64; 3]| clocks.iter().copied().fold(0.0, f64::max);
    let mean = clocks.iter().map(slowest).sum::<f64>() / phases as f64;
    let sums: [f64; 3] = std::array::from_fn(|at| clocks.iter().map(|clocks| clocks[at]).sum());
    let bound = match sums.iter().copied().fold(0.0, f64::max) {
        most if most == sums[0] => "tensor",
        most if most == sums[1] => "cache",
        _ => "shared",
    };
    Prediction { seconds: (rounds * (mean + around) + FILL) / CLOCK, bound }
}

/// A rung whose block is the one that should be fastest.
const fn rung(loads: Loads, persistent: bool) -> Rung {
    Rung { loads, blocks: if persistent { Some(BLOCKS) } else { None }, block: None, splits: false }
}

/// The product in a block of its own.
const fn in_block(block: Block) -> Rung {
    Rung { loads: Loads::Planes, blocks: Some(BLOCKS), block: Some(block), splits: false }
}

/// Every rung, lowest first, and what it is called.
pub const LADDER: [(&str, Rung); 4] = [
    ("im2col", rung(Loads::Im2col, false)),
    ("im2col, persistent", rung(Loads::Im2col, true)),
    ("planes", rung(Loads::Planes, false)),
    ("planes, persistent", rung(Loads::Planes, true)),
];

/// Blocks for batches that leave multiprocessors idle, to be measured side by side.
pub const IDLE_BLOCKS: [(&str, Rung); 2] =
    [("planes, 64x256", in_block(Block::Small)), ("planes, 64x256 split", in_block(Block::Split))];

#[cfg(test)]
mod tests {
    use super::super::plan::{Direction, plan};
    use super::*;
    use crate::engine::cuda::launch::conv::ConvShape;

    fn layer(side: usize, channels: usize) -> ConvShape {
        ConvShape {
            batch: 512,
            in_side: side,
            in_channels: channels,
            out_channels: channels,
            kernel: 3,
            stride: 1,
        }
    }

    #[test]
    fn im2col_is_bound_by_the_cache_and_planes_by_the_tensor_cores() {
        for (side, channels) in [(32, 64), (16, 128), (8, 256), (4, 512)] {
            let shape = layer(side, channels);
            let of = |rung| predict(&plan(&shape, Direction::Forward, rung).unwrap());
            assert_eq!(of(LADDER[0].1).bound, "cache", "{side}");
            assert_eq!(of(LADDER[3].1).bound, "tensor", "{side}");
            let seconds: Vec<f64> = LADDER.iter().map(|(_, rung)| of(*rung).seconds).collect();
            assert!(seconds.is_sorted_by(|a, b| a >= b), "{side}: {seconds:?}");
        }
    }

    #[test]
    fn a_split_reduction_does_better_where_half_of_the_multiprocessors_are_idle() {
        let [whole, split] = IDLE_BLOCKS.map(|(_, rung)| {
            let of = |batch| {
                let shape = ConvShape { batch, ..layer(4, 512) };
                predict(&plan(&shape, Direction::Forward, rung).unwrap()).seconds
            };
            [of(128), of(256)]
        });
        assert!(split[0] < 0.8 * whole[0] && split[1] > whole[1], "{split:?}, {whole:?}");
    }

    #[test]
    fn a_tile_of_the_first_stage_takes_what_one_works_out_by_hand() {
        let planned = plan(&layer(32, 64), Direction::Forward, Rung::default()).unwrap();
        let [tensor, cache, shared] = tile_clocks(&planned, 0);
        // 36 products of 128 clocks; three slots of ten planes of 4 KiB; 36 times 10 KiB, and the loads.
        assert_eq!(tensor, 36.0 * 128.0);
        assert_eq!(cache, 3.0 * 40_960.0 / 35.0);
        assert_eq!(shared, (36.0 * 10_240.0 + 3.0 * 40_960.0) / 128.0);
    }
}
