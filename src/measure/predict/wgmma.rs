//! How long a convolution on wgmma should take on an H200: its products, what follows them in each tile, and the ends of a launch.
//!
//! A block's products take as long as the slowest of three streams of a multiprocessor: 4,096 bf16 operations a clock, about 35
//! bytes from the second-level cache where all read at once and up to 64 where others are idle, 128 bytes of shared memory. What
//! follows them was read in the machine code; what no code tells is a guess and says so. A measurement that beats this is a
//! finding about these numbers.

use crate::cuda::launch::conv::wgmma::WeightParts;
use crate::cuda::launch::conv::wgmma::plan::{
    BLOCKS, Block, DEPTH_CHANNELS, EXCHANGE_CLOCKS, GROUP_CHANNELS, GROUP_PIXELS, Planned, TAP_CLOCKS,
};
use crate::cuda::launch::conv::{ConvShape, MaskOrder};

/// Of a multiprocessor: operations and bytes a clock.
const FLOPS_A_CLOCK: f64 = 4096.0;
pub const CACHE_BYTES_A_CLOCK: f64 = 35.0;
const MOST_CACHE_BYTES_A_CLOCK: f64 = 64.0;
const SHARED_BYTES_A_CLOCK: f64 = 128.0;
/// Clocks a second under load: an H200 holds about this with its tensor cores busy.
pub const CLOCK: f64 = 1.6e9;
/// Clocks of a launch before its first product and after its last: barriers, maps and the first loads, then the last stores and the
/// end of the grid (desk audit of the sm_90a machine code, 2026-11-28).
pub const LAUNCH: f64 = 3_500.0;
/// The same of a block that does not start its grid: its first loads find maps and code in place. A guess.
const FILL: f64 = 1_000.0;
/// Share of the tensor rate that a loop of products reaches, by 69 instructions between two taps of 512 clocks: 95 to 98 % (the
/// same audit). One warpgroup alone leaves the pauses at its barriers empty: a guess.
const LOOP_SHARE: f64 = 0.965;
const LONE_LOOP_SHARE: f64 = 0.9;
/// Clocks that an epilogue takes for each clock of its stall sum: 3,450 to 3,900 where that is 2,700 (the same audit).
const WAITS: f64 = 1.37;
/// Stall sum between an epilogue and the first product of the next tile: 165 to 270 (read like those of [`Epilogue`]). The residual
/// and the mask of a tile are asked for after that.
const PROLOGUE: f64 = 210.0;
/// Bytes that m64n256k16 reads: 64 and 256 rows of 16 bf16.
const PRODUCT_BYTES: usize = (64 + 256) * 16 * 2;
/// Bytes of 64 channels of 256 pixels in bf16.
const GROUP_BYTES: usize = GROUP_CHANNELS * GROUP_PIXELS * 2;

/// What bounds the products of a tile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    pub seconds: f64,
    /// `tensor`, `cache` or `shared`.
    pub bound: &'static str,
}

/// What a kernel does with the sums of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    Relu { residual: bool, mask: MaskOrder },
    Bias,
    Statistics,
    Gradient { residual: bool, mask: MaskOrder },
}

impl Epilogue {
    fn residual(self) -> bool {
        matches!(self, Self::Relu { residual: true, .. } | Self::Gradient { residual: true, .. })
    }

    /// Stall sum of what follows the last product of a tile: the clocks that ptxas wrote into the control words of those instructions
    /// that run where no wait is a long one, on the way of the thread that issues the stores (cuobjdump 13.2.86 on the sm_90a cubins of
    /// CUDA 13.0.88, 2026-12-01). The blocks differ by less than 3 %, the resident one's bias and gradient by 9 %, but for the split
    /// one, which finishes half a tile and adds up sums. A plain mask and a residual add `more`.
    fn stall_sum(self, block: Block) -> f64 {
        let of = |whole: f64, split: f64| if block == Block::Split { split } else { whole };
        let more = |residual, residuals: f64, mask, masks: f64| {
            (if residual { residuals } else { 0.0 }) + if mask == MaskOrder::Plain { masks } else { 0.0 }
        };
        match self {
            Self::Relu { residual, mask } => {
                of(815.0, 1_070.0) + more(residual, of(320.0, 205.0), mask, of(415.0, 210.0))
            }
            Self::Bias => of(570.0, 820.0),
            Self::Statistics => of(1_520.0, 1_690.0),
            Self::Gradient { residual, mask } => {
                of(770.0, 1_015.0) + more(residual, of(275.0, 150.0), mask, of(160.0, 125.0))
            }
        }
    }

    /// Clocks around the products of a tile in which its warpgroup multiplies nothing.
    fn around(self, block: Block) -> f64 {
        let exchange = if block == Block::Split { EXCHANGE_CLOCKS } else { 0.0 };
        PROLOGUE + WAITS * self.stall_sum(block) + exchange
    }
}

/// Bytes a clock that one of `blocks` blocks gets from the second-level cache.
fn cache_rate(blocks: usize) -> f64 {
    (CACHE_BYTES_A_CLOCK * BLOCKS as f64 / blocks.min(BLOCKS) as f64).min(MOST_CACHE_BYTES_A_CLOCK)
}

/// What one block loads for the products of a tile, and their clocks: tensor cores, second-level cache, shared memory.
fn tile_clocks(planned: &Planned, phase: usize) -> (f64, [f64; 3]) {
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
    let share = if groups == 1 && planned.block != Block::Resident { LONE_LOOP_SHARE } else { LOOP_SHARE };
    let clocks = [
        flops as f64 / FLOPS_A_CLOCK / share,
        loaded / cache_rate(planned.tiles * planned.block.parts()),
        (products as f64 * PRODUCT_BYTES as f64 + loaded) / SHARED_BYTES_A_CLOCK,
    ];
    (loaded, clocks)
}

fn most(clocks: &[f64; 3]) -> f64 {
    clocks.iter().copied().fold(0.0, f64::max)
}

/// Predicts a forward convolution or an input gradient.
pub fn predict(planned: &Planned, epilogue: Epilogue) -> Prediction {
    let block = planned.block;
    let blocks = planned.tiles * block.parts();
    let phases = planned.plan.phase_count as usize;
    let (channel_groups, pixel_groups) = block.groups();
    let stored = (channel_groups * pixel_groups * GROUP_BYTES / block.parts()) as f64;
    // The residual of a strided gradient belongs to one of its phases.
    let residuals = if epilogue.residual() { 1.0 / phases as f64 } else { 0.0 };
    let persistent = planned.most_blocks <= BLOCKS;
    let around = epilogue.around(block) + if persistent { 0.0 } else { FILL };
    // Two warpgroups of a persistent block take turns, and the products of one hide what is around those of the other, but for the
    // last.
    let takes_turns = block == Block::Resident && persistent;
    let tile = |(loaded, clocks): &(f64, [f64; 3])| {
        let products = most(clocks);
        let alone = if takes_turns { products.max((products + around) / 2.0) } else { products + around };
        // What is stored, and a residual, share the cache with the loads.
        alone.max((loaded + stored * (1.0 + residuals)) / cache_rate(blocks))
    };
    let last = if takes_turns { around } else { 0.0 };
    // Phases differ in their taps; a round has its share of each.
    let streams: Vec<(f64, [f64; 3])> = (0..phases).map(|phase| tile_clocks(planned, phase)).collect();
    let mean = streams.iter().map(tile).sum::<f64>() / phases as f64;
    let sums: [f64; 3] = std::array::from_fn(|at| streams.iter().map(|(_, clocks)| clocks[at]).sum());
    let bound = match most(&sums) {
        most if most == sums[0] => "tensor",
        most if most == sums[1] => "cache",
        _ => "shared",
    };
    let rounds = blocks.div_ceil(BLOCKS) as f64;
    Prediction { seconds: (rounds * mean + last + LAUNCH) / CLOCK, bound }
}

/// Predicts the first kernel of a weight gradient, by the same constants; its blocks make one round, and the one with most taps
/// ends last. `planned` is the plan of the weight gradient.
pub fn predict_weight_gradient(shape: &ConvShape, planned: &Planned) -> f64 {
    /// Stall sum of the stores after the last product, read like those of [`Epilogue`].
    const STALL_SUM: f64 = 1_090.0;
    let split = WeightParts::new(shape, planned);
    let taps = planned.plan.slots.iter().map(|slot| usize::from(slot.taps)).max().unwrap_or(0);
    // A tap of 64 channels and 256 pixels takes a warpgroup what one of a forward convolution takes.
    let tensor = taps as f64 * split.channel_groups as f64 * TAP_CLOCKS / LOOP_SHARE;
    let loaded = (planned.plan.slot_bytes as usize + split.channel_groups * GROUP_BYTES) as f64;
    let stored = (2 * GROUP_CHANNELS * taps * DEPTH_CHANNELS * 4) as f64;
    let [across, down] = split.blocks_a_part;
    let rate = cache_rate(across * down * split.blocks());
    let groups = split.groups_a_part as f64;
    (groups * tensor.max(loaded / rate) + WAITS * STALL_SUM + stored / rate + LAUNCH) / CLOCK
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::launch::conv::wgmma::{Direction, plan};

    const RELU: Epilogue = Epilogue::Relu { residual: false, mask: MaskOrder::Fragments };

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
    fn a_split_reduction_does_better_where_half_of_the_multiprocessors_are_idle() {
        let [whole, split] = [Block::Small, Block::Split].map(|block| {
            let of = |batch| {
                let shape = ConvShape { batch, ..layer(4, 512) };
                predict(&plan(&shape, Direction::Forward, |any| any == block).unwrap(), RELU).seconds
            };
            [of(128), of(256)]
        });
        assert!(split[0] < 0.8 * whole[0] && split[1] > whole[1], "{split:?}, {whole:?}");
    }

    #[test]
    fn a_tile_of_the_first_stage_takes_what_one_works_out_by_hand() {
        let planned = plan(&layer(32, 64), Direction::Forward, |_| true).unwrap();
        let (loaded, [tensor, cache, shared]) = tile_clocks(&planned, 0);
        // 36 products of 128 clocks; three slots of ten planes of 4 KiB; 36 times 10 KiB, and the loads.
        assert_eq!(tensor, 36.0 * 128.0 / LOOP_SHARE);
        assert_eq!(loaded, 3.0 * 40_960.0);
        assert_eq!(cache, 3.0 * 40_960.0 / 35.0);
        assert_eq!(shared, (36.0 * 10_240.0 + 3.0 * 40_960.0) / 128.0);
    }

    #[test]
    fn what_follows_the_products_tells_the_kernels_apart() {
        let planned = plan(&layer(16, 128), Direction::Forward, |_| true).unwrap();
        let of = |epilogue| predict(&planned, epilogue).seconds;
        let seconds = [Epilogue::Bias, RELU, Epilogue::Statistics].map(of);
        assert!(seconds.is_sorted_by(|a, b| a < b), "{seconds:?}");
        // Four rounds, each with a residual, and with a plain mask.
        for (residual, mask, more) in [(true, MaskOrder::Fragments, 320.0), (false, MaskOrder::Plain, 415.0)]
        {
            let added = (of(Epilogue::Relu { residual, mask }) - of(RELU)) * CLOCK;
            assert!((added - 4.0 * WAITS * more).abs() < 1.0, "{added}");
        }
        // The products of one warpgroup of the first stage hide what follows those of the other, but the last time.
        let planned = plan(&layer(32, 64), Direction::Forward, |_| true).unwrap();
        let [bias, relu, statistics] = [Epilogue::Bias, RELU, Epilogue::Statistics]
            .map(|epilogue| predict(&planned, epilogue).seconds * CLOCK);
        assert!((relu - bias - WAITS * (815.0 - 570.0)).abs() < 1.0, "{bias} {relu}");
        assert!((statistics - relu - WAITS * (1_520.0 - 815.0)).abs() < 1.0, "{relu} {statistics}");
    }
}
