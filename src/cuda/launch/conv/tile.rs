//! Which tile a convolution is computed in: one place for the choice, so that it can be measured and changed.

use crate::cuda::driver::Kernel;
use crate::engine::{Error, Result};

/// A block's share of a forward convolution or an input gradient: 128 pixels by so many channels.
///
/// The choice never changes a result: each element is summed in the same order in all three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    Columns128,
    Columns64,
    Columns16,
}

/// Blocks that keep a large GPU busy: with fewer, smaller tiles do better than efficient ones.
const BUSY_BLOCKS: usize = 132;

impl Tile {
    /// Pixels of a tile, whichever its width.
    pub const ROWS: usize = 128;
    pub const ALL: [Self; 3] = [Self::Columns128, Self::Columns64, Self::Columns16];

    pub fn columns(self) -> usize {
        match self {
            Self::Columns128 => 128,
            Self::Columns64 => 64,
            Self::Columns16 => 16,
        }
    }

    /// The tile for a GEMM of `rows` pixels by `columns` channels.
    pub fn choose(rows: usize, columns: usize) -> Self {
        let blocks = |tile: Self| rows.div_ceil(Self::ROWS) * (columns / tile.columns());
        match columns {
            c if c % 128 == 0 && blocks(Self::Columns128) >= BUSY_BLOCKS => Self::Columns128,
            c if c % 64 == 0 => Self::Columns64,
            _ => Self::Columns16,
        }
    }

    /// The kernel `operation` in this tile, the column tiles and the blocks of the grid.
    pub(super) fn plan(self, operation: &str, rows: usize, columns: usize) -> Result<Plan> {
        if !columns.is_multiple_of(self.columns()) {
            return Err(Error::Invalid(format!(
                "{operation}: {columns} channels in tiles of {}; choose a narrower tile",
                self.columns()
            )));
        }
        let column_tiles = columns / self.columns();
        Ok(Plan {
            kernel: Kernel::named(&format!("{operation}_mma_128x{}", self.columns()))?,
            log2_column_tiles: column_tiles.ilog2(),
            blocks: (rows.div_ceil(Self::ROWS) * column_tiles) as u32,
        })
    }
}

pub(super) struct Plan {
    pub kernel: Kernel,
    pub log2_column_tiles: u32,
    pub blocks: u32,
}
