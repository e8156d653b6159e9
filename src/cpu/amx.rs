//! AMX: tiles of sixteen rows of bf16 pairs whose products the CPU adds to sixteen by sixteen f32 sums.
//!
//! Rust has its instructions only as assembly. Every function here that sets tiles up also releases them.

use std::arch::{asm, x86_64};
use std::sync::OnceLock;

use super::tiles::{LANES, Phase, Pixel, Step};

/// Rows of a tile, and words of a row.
pub const ROWS: usize = 16;

/// Whether the CPU has tiles of bf16 and the system lets this process use them.
pub fn present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    *PRESENT.get_or_init(|| {
        let (most, features) = (x86_64::__cpuid(0).eax, x86_64::__cpuid_count(7, 0).edx);
        most >= 7 && features >> 22 & 1 == 1 && features >> 24 & 1 == 1 && permitted()
    })
}

/// Asks Linux for the state of tiles: ARCH_REQ_XCOMP_PERM of feature 18.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    // SAFETY: a call that changes what this process may use, and no memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1023, 18) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// What the CPU reads the shapes of eight tiles from.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Sets up tiles 0 to 3 for sums, 4 and 5 for `rows` rows of `words`, 6 and 7 for `words` rows; releases them after `task`.
///
/// # Safety
/// [`present`], and neither number is over [`ROWS`].
unsafe fn with_tiles(rows: usize, words: usize, task: impl FnOnce()) {
    let mut config =
        Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    for tile in 0..8 {
        let (rows, words) = match tile {
            0..4 => (rows, LANES),
            4..6 => (rows, words),
            _ => (words, LANES),
        };
        (config.rows[tile], config.row_bytes[tile]) = (rows as u8, 4 * words as u16);
    }
    // SAFETY: a valid configuration; no compiled code uses tiles in between.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly));
        task();
        asm!("tilerelease", options(nostack, nomem));
    }
}

/// Operands of a block of sums. Distances are in bytes.
struct Block<'a> {
    steps: &'a [Step],
    /// Where each left operand begins; the second only for two.
    left: [*const f32; 2],
    left_stride: usize,
    right: *const f32,
    right_stride: usize,
    out: [*mut f32; 2],
    out_stride: usize,
    /// Whether sums begin with what is there.
    add: bool,
}

/// A function that computes a block of one or two left operands times one or two right ones, which are neighbours.
macro_rules! block {
    ($name:ident, zero: [$($zero:literal)*], load: [$($load:literal)*],
     multiply: [$($multiply:literal)*], store: [$($store:literal)*]) => {
        unsafe fn $name(block: &Block) {
            // SAFETY: the caller set tiles up; every row of the operands and sums is valid memory.
            unsafe {
                asm!(
                    "test {add}, {add}", "jnz 2f",
                    $($zero,)*
                    "jmp 3f",
                    "2:",
                    "mov {a}, [{out}]", "mov {b}, [{out} + 8]",
                    $($load,)*
                    "3:",
                    "test {count}, {count}", "jz 5f",
                    "4:",
                    "mov {a}, [{steps}]", "mov {b}, [{steps} + 8]", "add {b}, {right}",
                    $($multiply,)*
                    "add {steps}, 16", "dec {count}", "jnz 4b",
                    "5:",
                    "mov {a}, [{out}]", "mov {b}, [{out} + 8]",
                    $($store,)*
                    "/* {second} */",
                    add = in(reg) usize::from(block.add),
                    out = in(reg) &block.out,
                    out_stride = in(reg) block.out_stride,
                    steps = inout(reg) block.steps.as_ptr() => _,
                    count = inout(reg) block.steps.len() => _,
                    first = in(reg) block.left[0],
                    second = in(reg) block.left[1],
                    left_stride = in(reg) block.left_stride,
                    right = in(reg) block.right,
                    right_stride = in(reg) block.right_stride,
                    a = out(reg) _,
                    b = out(reg) _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

block!(one_by_one,
    zero: ["tilezero tmm0"],
    load: ["tileloadd tmm0, [{a} + {out_stride}]"],
    multiply: [
        "tileloadd tmm6, [{b} + {right_stride}]"
        "add {a}, {first}" "tileloadd tmm4, [{a} + {left_stride}]" "tdpbf16ps tmm0, tmm4, tmm6"
    ],
    store: ["tilestored [{a} + {out_stride}], tmm0"]);
block!(one_by_two,
    zero: ["tilezero tmm0" "tilezero tmm1"],
    load: ["tileloadd tmm0, [{a} + {out_stride}]" "tileloadd tmm1, [{a} + {out_stride} + 64]"],
    multiply: [
        "tileloadd tmm6, [{b} + {right_stride}]" "tileloadd tmm7, [{b} + {right_stride} + 64]"
        "add {a}, {first}" "tileloadd tmm4, [{a} + {left_stride}]"
        "tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm1, tmm4, tmm7"
    ],
    store: ["tilestored [{a} + {out_stride}], tmm0" "tilestored [{a} + {out_stride} + 64], tmm1"]);
block!(two_by_one,
    zero: ["tilezero tmm0" "tilezero tmm2"],
    load: ["tileloadd tmm0, [{a} + {out_stride}]" "tileloadd tmm2, [{b} + {out_stride}]"],
    multiply: [
        "tileloadd tmm6, [{b} + {right_stride}]"
        "lea {b}, [{a} + {first}]" "tileloadd tmm4, [{b} + {left_stride}]" "tdpbf16ps tmm0, tmm4, tmm6"
        "add {a}, {second}" "tileloadd tmm5, [{a} + {left_stride}]" "tdpbf16ps tmm2, tmm5, tmm6"
    ],
    store: ["tilestored [{a} + {out_stride}], tmm0" "tilestored [{b} + {out_stride}], tmm2"]);
block!(two_by_two,
zero: ["tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3"],
load: [
    "tileloadd tmm0, [{a} + {out_stride}]" "tileloadd tmm1, [{a} + {out_stride} + 64]"
    "tileloadd tmm2, [{b} + {out_stride}]" "tileloadd tmm3, [{b} + {out_stride} + 64]"
],
multiply: [
    "tileloadd tmm6, [{b} + {right_stride}]" "tileloadd tmm7, [{b} + {right_stride} + 64]"
    "lea {b}, [{a} + {first}]" "tileloadd tmm4, [{b} + {left_stride}]"
    "tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm1, tmm4, tmm7"
    "add {a}, {second}" "tileloadd tmm5, [{a} + {left_stride}]"
    "tdpbf16ps tmm2, tmm5, tmm6" "tdpbf16ps tmm3, tmm5, tmm7"
],
store: [
    "tilestored [{a} + {out_stride}], tmm0" "tilestored [{a} + {out_stride} + 64], tmm1"
    "tilestored [{b} + {out_stride}], tmm2" "tilestored [{b} + {out_stride} + 64], tmm3"
]);

/// One block, of two left operands or one, and of `N` right ones.
unsafe fn multiply<const N: usize>(two: bool, block: &Block) {
    // SAFETY: the caller's.
    unsafe {
        match (two, N) {
            (true, 2) => two_by_two(block),
            (true, _) => two_by_one(block),
            (false, 2) => one_by_two(block),
            (false, _) => one_by_one(block),
        }
    }
}

/// As [`Products::tile`](super::tiles::Products::tile), for blocks of `N` vectors.
pub unsafe fn tile<const N: usize>(input: *const f32, phase: &Phase, weights: *const f32, output: *mut f32) {
    let block = |pixels: [&Pixel; 2]| {
        // SAFETY: the caller's pointers reach every word of the phase.
        let (left, out) =
            unsafe { (pixels.map(|at| input.add(at.input)), pixels.map(|at| output.add(at.output))) };
        Block {
            steps: &phase.steps,
            left,
            left_stride: 4 * phase.input_step,
            right: weights,
            right_stride: 4 * N * LANES,
            out,
            out_stride: 4 * phase.output_step,
            add: false,
        }
    };
    let (pairs, rest) = phase.pixels.as_chunks::<2>();
    // SAFETY: the caller's.
    unsafe {
        with_tiles(phase.rows, phase.words, || {
            pairs.iter().for_each(|[a, b]| multiply::<N>(true, &block([a, b])));
            rest.iter().for_each(|a| multiply::<N>(false, &block([a, a])));
        });
    }
}

/// A sum over pixels, `sums[k][row] += sum over p of gradient[k][p] * input[p][row]`, of pairs of pixels p. Distances are in words.
pub struct Outer<'a> {
    pub gradient: &'a [f32],
    /// Between two k.
    pub gradient_stride: usize,
    /// Output channels, a multiple of [`ROWS`].
    pub channels: usize,
    pub input: &'a [f32],
    /// Between two pairs.
    pub input_stride: usize,
    /// Pairs, a multiple of [`ROWS`].
    pub pairs: usize,
    /// A multiple of [`LANES`].
    pub rows: usize,
    /// Between two k.
    pub sums_stride: usize,
}

impl Outer<'_> {
    /// Adds to `sums`. Panics where an operand lies outside of its slice.
    pub fn add(&self, sums: &mut [f32]) {
        let Self { gradient_stride, channels, input_stride, pairs, rows, sums_stride, .. } = *self;
        assert!(channels.is_multiple_of(ROWS) && pairs.is_multiple_of(ROWS) && rows.is_multiple_of(LANES));
        assert!(channels > 0 && pairs > 0 && rows > 0, "{channels} x {pairs} x {rows}");
        assert!((channels - 1) * gradient_stride + pairs <= self.gradient.len(), "gradient");
        assert!((pairs - 1) * input_stride + rows <= self.input.len(), "input");
        assert!((channels - 1) * sums_stride + rows <= sums.len(), "sums");
        assert!(present(), "no tiles");
        let steps: Vec<Step> = (0..pairs / ROWS)
            .map(|step| Step { input: 4 * step * ROWS, weights: 4 * step * ROWS * input_stride })
            .collect();
        let sums = sums.as_mut_ptr();
        // SAFETY: every row of the operands and sums lies in its slice, as just checked.
        unsafe {
            with_tiles(ROWS, ROWS, || {
                for row in (0..rows).step_by(2 * LANES) {
                    for k in (0..channels).step_by(2 * ROWS) {
                        let ks = [k, if k + ROWS < channels { k + ROWS } else { k }];
                        let block = Block {
                            steps: &steps,
                            left: ks.map(|k| self.gradient.as_ptr().add(k * gradient_stride)),
                            left_stride: 4 * gradient_stride,
                            right: self.input.as_ptr().add(row),
                            right_stride: 4 * input_stride,
                            out: ks.map(|k| sums.add(k * sums_stride + row)),
                            out_stride: 4 * sums_stride,
                            add: true,
                        };
                        let two = ks[0] != ks[1];
                        if row + LANES < rows {
                            multiply::<2>(two, &block);
                        } else {
                            multiply::<1>(two, &block);
                        }
                    }
                }
            });
        }
    }
}

/// As [`Products::peak`](super::tiles::Products::peak): rounds of two products, operands from the first cache.
pub unsafe fn registers(rounds: usize) -> f32 {
    let ones = [1.0f32; ROWS * LANES];
    let mut out = [0.0f32; ROWS * LANES];
    let steps: Vec<Step> = (0..rounds).map(|_| Step { input: 0, weights: 0 }).collect();
    // SAFETY: the caller has tiles, which the arrays hold whole.
    unsafe {
        with_tiles(ROWS, ROWS, || {
            let at = |of: &[f32]| of.as_ptr();
            let out = [out.as_mut_ptr(); 2];
            let stride = 4 * LANES;
            let block = Block {
                steps: &steps,
                left: [at(&ones); 2],
                left_stride: stride,
                right: at(&ones),
                right_stride: stride,
                out,
                out_stride: stride,
                add: false,
            };
            multiply::<1>(true, &block);
        });
    }
    out[0]
}
