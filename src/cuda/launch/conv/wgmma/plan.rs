//! What a convolution on wgmma loads and in which order: the mirror of `kernels/conv/wgmma/plan.cuh`, and how it is made. Pure arithmetic.

use bytemuck::{Pod, Zeroable};

use super::super::ConvShape;
use crate::cuda::driver::WgmmaSwitch;

/// Output pixels that a warpgroup computes, and channels.
pub const GROUP_PIXELS: usize = 256;
pub const GROUP_CHANNELS: usize = 64;
/// Channels of the reduction in one slot.
pub const DEPTH_CHANNELS: usize = 64;
/// Bytes of a pixel in shared memory.
pub const PIXEL_BYTES: usize = 128;
/// Blocks of a persistent grid: one on each multiprocessor of an H100 or H200. A constant, as it decides where a reduction is
/// split, and results must not depend on the card.
pub const BLOCKS: usize = 132;
/// Clocks that a tap of 64 channels takes a warpgroup: four products of 16 deep, 128 each.
pub const TAP_CLOCKS: f64 = 512.0;
/// Clocks in which the two blocks of [`Block::Split`] exchange their sums: 32 KiB each way, at 14 bytes a clock, and the way
/// there. Predicted, not measured.
pub const EXCHANGE_CLOCKS: f64 = 2_800.0;

/// One load of pixel planes and the taps that read it; byte `t` of `planes` and `weights` belongs to tap `t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Slot {
    /// Which of the gathered image's maps: parity of row, then of column, where the stride is 2.
    pub map: u8,
    /// Displacement of the first plane and of the first pixel of a plane.
    pub row: i8,
    pub column: i8,
    pub taps: u8,
    /// Plane at which each tap starts.
    pub planes: u32,
    /// Position of each tap in the kernel.
    pub weights: u32,
}

/// Output pixels with taps of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Phase {
    pub first_slot: u32,
    pub slots: u32,
}

/// `WgmmaPlan` of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Plan {
    pub slots: [Slot; 12],
    pub phases: [Phase; 4],
    pub phase_count: u32,
    pub phase_tiles: u32,
    pub log2_channel_tiles: u32,
    pub chunks: u32,
    pub log2_side: u32,
    pub log2_images: u32,
    pub batch: u32,
    pub plane_bytes: u32,
    pub slot_bytes: u32,
    /// Maps of pixels that a kernel fetches ahead, and with them the others; 0 for none. Said by each launch.
    pub prefetched: u32,
}

/// Which convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Forward,
    Gradient,
}

impl Direction {
    pub const ALL: [Self; 2] = [Self::Forward, Self::Gradient];

    /// What switches it off.
    pub fn switch(self) -> WgmmaSwitch {
        match self {
            Self::Forward => WgmmaSwitch::Forward,
            Self::Gradient => WgmmaSwitch::InputGradient,
        }
    }
}

/// Parity of row and column of the input pixels that a phase of a strided input gradient writes, most taps first.
pub const PARITIES: [(usize, usize); 4] = [(1, 1), (1, 0), (0, 1), (0, 0)];

/// What a kernel is built for: the tiles of `kernels/conv/wgmma/pipeline.cuh`. Each element is summed in the same order in all,
/// bit for bit, but in [`Block::Split`], which sums the two halves of the reduction by themselves, in that order, and then adds
/// them: always the same bits, but not those of the others. So it is chosen only where results may depend on the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// 128 channels by 256 pixels, two warpgroups.
    Wide,
    /// 64 channels by 512 pixels, two warpgroups.
    Long,
    /// 64 channels by 256 pixels, one warpgroup.
    Small,
    /// The same by a cluster of two blocks, each with half of the reduction: an even number of chunks.
    Split,
    /// As [`Block::Small`] with all weights in shared memory, two warpgroups in turns: 64 channels to 64, stride 1.
    Resident,
}

impl Block {
    pub const ALL: [Self; 5] = [Self::Wide, Self::Long, Self::Small, Self::Split, Self::Resident];

    /// In the kernels' symbols.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wide => "128x256",
            Self::Long => "64x512",
            Self::Small => "64x256",
            Self::Split => "64x256_split",
            Self::Resident => "resident",
        }
    }
    /// What switches it off.
    pub fn switch(self) -> WgmmaSwitch {
        match self {
            Self::Wide => WgmmaSwitch::Block128x256,
            Self::Long => WgmmaSwitch::Block64x512,
            Self::Small => WgmmaSwitch::Block64x256,
            Self::Split => WgmmaSwitch::Split,
            Self::Resident => WgmmaSwitch::Resident,
        }
    }
    /// Groups of 64 channels, and of 256 pixels, of a tile.
    pub fn groups(self) -> (usize, usize) {
        match self {
            Self::Wide => (2, 1),
            Self::Long => (1, 2),
            Self::Small | Self::Split | Self::Resident => (1, 1),
        }
    }
    /// Whether the bits of its sums are not those of the others.
    pub fn splits(self) -> bool {
        self.parts() > 1
    }
    /// Parts of the reduction, a block of a cluster each.
    pub fn parts(self) -> usize {
        if self == Self::Split { 2 } else { 1 }
    }
    /// Bytes that a pixel slot has room for, of one group of pixels.
    fn slot_bytes(self) -> usize {
        match self {
            Self::Wide | Self::Small | Self::Split => 48 * 1024,
            Self::Long | Self::Resident => 40 * 1024,
        }
    }

    /// Whether it serves `columns` channels in slots of `slot_bytes`, and a reduction of `chunks`.
    fn fits(self, columns: usize, chunks: usize, slot_bytes: usize, can_reside: bool) -> bool {
        columns.is_multiple_of(self.groups().0 * GROUP_CHANNELS)
            && chunks.is_multiple_of(self.parts())
            && slot_bytes <= self.slot_bytes()
            && (can_reside || self != Self::Resident)
    }

    /// Tiles of `columns` channels and `groups` groups of pixels.
    fn tiles(self, columns: usize, groups: usize) -> usize {
        let (channel_groups, pixel_groups) = self.groups();
        groups.div_ceil(pixel_groups) * (columns / GROUP_CHANNELS / channel_groups)
    }

    /// Rounds of a grid that has `tiles` tiles, each of `taps` taps of 64 channels on average, in the work of one warpgroup. One
    /// alone fetches its weights for itself and keeps the tensor cores a little less busy; so do two that split its work, when
    /// twice as many fetch at once; the resident one always does best. Predicted, not measured.
    fn cost(self, tiles: usize, taps: f64) -> f64 {
        let each = match self {
            Self::Wide | Self::Long => 2.0,
            Self::Small => 1.2,
            Self::Split => 0.7 + EXCHANGE_CLOCKS / (taps * TAP_CLOCKS),
            Self::Resident => 0.9,
        };
        (tiles * self.parts()).div_ceil(BLOCKS) as f64 * each
    }
}

/// A plan, and what its launch and its maps need next to it.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    pub plan: Plan,
    pub block: Block,
    /// Blocks of the grid at most, which go from tile to tile: [`BLOCKS`], unless a caller sets another number.
    pub most_blocks: usize,
    /// Planes that a slot loads.
    pub planes: usize,
    /// Rows and images of a group of pixels, and how many groups there are.
    pub rows: usize,
    pub images: usize,
    pub groups: usize,
    /// Work of the whole grid.
    pub tiles: usize,
}

impl Planned {
    /// Blocks of the grid.
    pub fn grid_blocks(&self) -> u32 {
        let parts = self.block.parts();
        (self.tiles.min(self.most_blocks / parts) * parts) as u32
    }
}

/// Rows and images of 256 pixels of a grid of this side.
fn group(side: usize) -> (usize, usize) {
    match side * side {
        area if area >= GROUP_PIXELS => (GROUP_PIXELS / side, 1),
        area => (side, GROUP_PIXELS / area),
    }
}

/// Images of a group of pixels of this side.
pub fn images_of_a_group(side: usize) -> usize {
    group(side).1
}

/// Plans a convolution in the block that should be fastest of those allowed; `None` where none of these kernels serves it.
pub fn plan(shape: &ConvShape, direction: Direction, allowed: impl Fn(Block) -> bool) -> Option<Planned> {
    let (columns, reduction) = match direction {
        Direction::Forward => (shape.out_channels, shape.in_channels),
        Direction::Gradient => (shape.in_channels, shape.out_channels),
    };
    let side = shape.out_side();
    if columns % GROUP_CHANNELS != 0 || reduction % DEPTH_CHANNELS != 0 || !(4..=32).contains(&side) {
        return None;
    }
    let (rows, images) = group(side);
    let (phases, extra_planes) = slots(shape, direction)?;
    let plane_bytes = side * images * PIXEL_BYTES;
    let planes = rows + extra_planes;
    let slot_bytes = planes * plane_bytes;
    let groups = shape.batch.div_ceil(images) * (side * side * images / GROUP_PIXELS);
    let can_reside =
        (shape.kernel, shape.stride, columns, reduction) == (3, 1, GROUP_CHANNELS, DEPTH_CHANNELS);
    let chunks = reduction / DEPTH_CHANNELS;
    let taps = (shape.taps() * chunks) as f64 / phases.len() as f64;
    let cost = |block: &Block| block.cost(phases.len() * block.tiles(columns, groups), taps);
    let block = Block::ALL
        .into_iter()
        .filter(|block| block.fits(columns, chunks, slot_bytes, can_reside) && allowed(*block))
        .min_by(|a, b| cost(a).total_cmp(&cost(b)))?;
    let channel_tiles = columns / (GROUP_CHANNELS * block.groups().0);
    let phase_tiles = block.tiles(columns, groups);

    let mut plan = Plan {
        phase_count: phases.len() as u32,
        phase_tiles: phase_tiles as u32,
        log2_channel_tiles: channel_tiles.ilog2(),
        chunks: chunks as u32,
        log2_side: side.ilog2(),
        log2_images: images.ilog2(),
        batch: shape.batch as u32,
        plane_bytes: plane_bytes as u32,
        slot_bytes: slot_bytes as u32,
        ..Zeroable::zeroed()
    };
    let mut next = 0;
    for (phase, slots) in phases.iter().enumerate() {
        plan.phases[phase] = Phase { first_slot: next as u32, slots: slots.len() as u32 };
        plan.slots[next..next + slots.len()].copy_from_slice(slots);
        next += slots.len();
    }
    Some(Planned {
        plan,
        block,
        most_blocks: BLOCKS,
        planes,
        rows,
        images,
        groups,
        tiles: phases.len() * phase_tiles,
    })
}

/// A slot from its taps: (plane, position in the kernel).
pub fn slot(map: usize, row: i8, column: i8, taps: &[(u32, u32)]) -> Slot {
    let word = |of: fn(&(u32, u32)) -> u32| taps.iter().rev().fold(0, |word, tap| word << 8 | of(tap));
    Slot {
        map: map as u8,
        row,
        column,
        taps: taps.len() as u8,
        planes: word(|tap| tap.0),
        weights: word(|tap| tap.1),
    }
}

/// The slots of each phase, and how many planes a slot has beyond the rows of its pixels.
fn slots(shape: &ConvShape, direction: Direction) -> Option<(Vec<Vec<Slot>>, usize)> {
    use Direction::{Forward, Gradient};
    match (shape.kernel, shape.stride, direction) {
        // Rows r = 0, 1, 2 of the kernel are contiguous planes, from one above the first pixel on.
        (3, 1, Forward) => {
            let column = |s: u32| slot(0, -1, s as i8 - 1, &[(0, s), (1, 3 + s), (2, 6 + s)]);
            Some((vec![(0..3).map(column).collect()], 2))
        }
        // The same mirrored: tap (r, s) reads (1 - r, 1 - s) further on.
        (3, 1, Gradient) => {
            let column = |s: u32| slot(0, -1, 1 - s as i8, &[(2, s), (1, 3 + s), (0, 6 + s)]);
            Some((vec![(0..3).map(column).collect()], 2))
        }
        // Row 2 p + r - 1: odd rows p - 1 and p for r = 0 and 2, the even row p for r = 1; columns alike.
        (3, 2, Forward) => {
            let columns = [(1, -1, 0), (0, 0, 1), (1, 0, 2)];
            let pair = |(parity, column, s): (usize, i8, u32)| {
                [slot(2 + parity, -1, column, &[(0, s), (1, 6 + s)]), slot(parity, 0, column, &[(0, 3 + s)])]
            };
            Some((vec![columns.into_iter().flat_map(pair).collect()], 1))
        }
        // An odd input row meets r = 0 of the output row below and r = 2 of its own; an even one r = 1 of its own.
        (3, 2, Gradient) => {
            let reached = |parity: usize| if parity == 1 { vec![(1, 0), (0, 2)] } else { vec![(0, 1)] };
            let phase = |(row, column): (usize, usize)| {
                let taps = |s: u32| -> Vec<(u32, u32)> {
                    reached(row).into_iter().map(|(plane, r): (u32, u32)| (plane, 3 * r + s)).collect()
                };
                reached(column).into_iter().map(|(at, s)| slot(0, 0, at as i8, &taps(s))).collect()
            };
            Some((PARITIES.into_iter().map(phase).collect(), 1))
        }
        (1, 2, _) => Some((vec![vec![slot(0, 0, 0, &[(0, 0)])]], 0)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ResNet;

    /// Every product (output pixel row, input row, tap row) of one axis that a plan makes, as (grid position with parity,
    /// gathered position, tap), gathered positions in the whole image.
    fn products(shape: &ConvShape, direction: Direction) -> Vec<([usize; 2], [i64; 2], usize)> {
        let planned = plan(shape, direction, |_| true).unwrap();
        let side = shape.out_side() as i64;
        let mut products = Vec::new();
        let phases = &planned.plan.phases[..planned.plan.phase_count as usize];
        for (of, parity) in phases.iter().zip(PARITIES) {
            let parity = if direction == Direction::Gradient && shape.kernel == 3 && shape.stride == 2 {
                parity
            } else {
                (0, 0)
            };
            let spread = if planned.plan.phase_count == 4 { 2 } else { 1 };
            let slots = &planned.plan.slots[of.first_slot as usize..(of.first_slot + of.slots) as usize];
            for slot in slots {
                for tap in 0..usize::from(slot.taps) {
                    let byte = |word: u32| (word >> (8 * tap) & 0xFF) as usize;
                    assert!(byte(slot.planes) + planned.rows <= planned.planes);
                    for p in 0..side {
                        for q in 0..side {
                            let at = [
                                p + i64::from(slot.row) + byte(slot.planes) as i64,
                                q + i64::from(slot.column),
                            ];
                            // Forward with stride 2 gathers from one of four interleaved images.
                            let gathered = match (direction, shape.stride) {
                                (Direction::Forward, 2) => {
                                    [2 * at[0] + i64::from(slot.map / 2), 2 * at[1] + i64::from(slot.map % 2)]
                                }
                                _ => at,
                            };
                            let image =
                                if direction == Direction::Forward { shape.in_side } else { side as usize };
                            if gathered.iter().all(|at| (0..image as i64).contains(at)) {
                                let grid = [spread * p as usize + parity.0, spread * q as usize + parity.1];
                                products.push((grid, gathered, byte(slot.weights)));
                            }
                        }
                    }
                }
            }
        }
        products.sort_unstable();
        products
    }

    #[test]
    fn a_plan_makes_every_product_of_a_convolution_once() {
        let mut seen = 0;
        for conv in ResNet::resnet18(64, 10).convs().iter().skip(1) {
            let shape = ConvShape::new(conv, 5);
            let (side, padding) = (shape.in_side as i64, shape.kernel as i64 / 2);
            let (mut forward, mut gradient) = (Vec::new(), Vec::new());
            for p in 0..shape.out_side() {
                for q in 0..shape.out_side() {
                    for tap in 0..shape.taps() {
                        let (r, s) = ((tap / shape.kernel) as i64, (tap % shape.kernel) as i64);
                        let h = (p * shape.stride) as i64 + r - padding;
                        let w = (q * shape.stride) as i64 + s - padding;
                        if (0..side).contains(&h) && (0..side).contains(&w) {
                            forward.push(([p, q], [h, w], tap));
                            // The compact gradient of a 1 x 1 kernel is on the output's grid.
                            let shrink = if shape.kernel == 1 { 2 } else { 1 };
                            let at = [h as usize / shrink, w as usize / shrink];
                            gradient.push((at, [p as i64, q as i64], tap));
                        }
                    }
                }
            }
            forward.sort_unstable();
            gradient.sort_unstable();
            assert_eq!(products(&shape, Direction::Forward), forward, "{}", conv.name);
            assert_eq!(products(&shape, Direction::Gradient), gradient, "{}", conv.name);
            seen += 1;
        }
        assert_eq!(seen, 19);
    }

    #[test]
    fn a_reduction_is_split_where_that_fills_the_multiprocessors() {
        let block = |side: usize, channels: usize, batch| {
            let shape = ConvShape {
                batch,
                in_side: side,
                in_channels: channels,
                out_channels: channels,
                kernel: 3,
                stride: 1,
            };
            Direction::ALL.map(|direction| plan(&shape, direction, |_| true).unwrap().block)
        };
        // 64 and 128 tiles of 64 x 256 on 132 multiprocessors, then 256 of them.
        assert_eq!(block(4, 512, 128), [Block::Split; 2]);
        assert_eq!(block(8, 256, 64), [Block::Split; 2]);
        assert_eq!(block(8, 256, 128), [Block::Small; 2]);
        assert_eq!(block(4, 512, 256), [Block::Small; 2]);
        assert_eq!(block(4, 512, 512), [Block::Wide; 2]);
        // Where the bits may not depend on the batch none is.
        let evaluated =
            ConvShape { batch: 128, in_side: 4, in_channels: 512, out_channels: 512, kernel: 3, stride: 1 };
        assert_eq!(
            plan(&evaluated, Direction::Forward, |block| !block.splits()).unwrap().block,
            Block::Small
        );
        // One chunk cannot be split.
        assert_eq!(block(32, 64, 1), [Block::Resident; 2]);

        // Eight taps of 64 channels are not worth the exchange.
        let shortcut =
            ConvShape { batch: 128, in_side: 8, in_channels: 256, out_channels: 512, kernel: 1, stride: 2 };
        assert_eq!(plan(&shortcut, Direction::Forward, |_| true).unwrap().block, Block::Small);
    }

    #[test]
    fn other_shapes_are_left_to_mma() {
        for conv in ResNet::resnet18(16, 10).convs() {
            let shape = ConvShape::new(&conv, 4);
            let served = shape.in_channels >= 64 && shape.out_channels >= 64;
            assert_eq!(plan(&shape, Direction::Forward, |_| true).is_some(), served, "{}", conv.name);
        }
        let stem = ConvShape::new(&ResNet::resnet18(64, 10).convs()[0], 4);
        assert!(plan(&stem, Direction::Forward, |_| true).is_none());
    }
}
