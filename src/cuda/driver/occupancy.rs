//! How many blocks of a kernel a multiprocessor holds at once, from what ptxas and the kernel's table say.
//!
//! The limits are those of the CUDA C++ Programming Guide (technical specifications per compute capability); registers
//! are given out per warp in steps of 256, warps in steps of four (one a scheduler), and a block's shared memory in
//! steps of 128 bytes with 1 KiB more for the system.

/// What one multiprocessor has.
struct Multiprocessor {
    threads: u32,
    blocks: u32,
    /// Bytes of shared memory, of all blocks.
    shared: u32,
}

const REGISTERS: u32 = 65_536;
const WARP: u32 = 32;

fn multiprocessor(target: &str) -> Option<Multiprocessor> {
    let (threads, blocks, shared) = match target {
        "sm_80" => (2048, 32, 164),
        "sm_86" => (1536, 16, 100),
        "sm_89" => (1536, 24, 100),
        "sm_90a" => (2048, 32, 228),
        "sm_120" => (1536, 24, 100),
        _ => return None,
    };
    Some(Multiprocessor { threads, blocks, shared: shared * 1024 })
}

/// Blocks on a multiprocessor, and what keeps it from holding more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Occupancy {
    pub blocks: u32,
    /// Its warps over those that a multiprocessor can hold.
    pub share: f64,
    /// `registers`, `shared memory`, `threads` or `blocks`: the first that is used up.
    pub limit: &'static str,
}

/// The occupancy of blocks of `threads` threads with `registers` a thread and `shared` bytes of shared memory; `None` for a
/// target that is not known, such as PTX.
pub fn occupancy(target: &str, registers: u32, threads: u32, shared: u32) -> Option<Occupancy> {
    let sm = multiprocessor(target)?;
    let warps = threads.div_ceil(WARP).max(1);
    let warp_registers = (registers.max(1) * WARP).next_multiple_of(256);
    let by_registers = REGISTERS / warp_registers / 4 * 4 / warps;
    let by_shared = sm.shared / (shared.next_multiple_of(128) + 1024);
    let limits = [
        (by_registers, "registers"),
        (by_shared, "shared memory"),
        (sm.threads / (warps * WARP), "threads"),
        (sm.blocks, "blocks"),
    ];
    let (blocks, limit) = limits.into_iter().min_by_key(|(blocks, _)| *blocks)?;
    let share = f64::from(blocks * warps) / f64::from(sm.threads / WARP);
    Some(Occupancy { blocks, share, limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcest_thing_limits() {
        // (target, registers, threads, shared): blocks, share, limit; by hand from the guide's tables.
        for ((target, registers, threads, shared), expected) in [
            (("sm_90a", 32, 256, 0), (8, 1.0, "registers")),
            (("sm_90a", 33, 256, 0), (6, 0.75, "registers")),
            (("sm_90a", 168, 384, 0), (1, 0.1875, "registers")),
            (("sm_90a", 32, 128, 200 * 1024), (1, 0.0625, "shared memory")),
            (("sm_80", 24, 256, 40 * 1024), (4, 0.5, "shared memory")),
            (("sm_86", 16, 32, 0), (16, 16.0 / 48.0, "blocks")),
            (("sm_89", 40, 512, 0), (3, 1.0, "registers")),
            (("sm_120", 20, 1024, 0), (1, 32.0 / 48.0, "threads")),
        ] {
            let actual = occupancy(target, registers, threads, shared).unwrap();
            assert_eq!(
                (actual.blocks, actual.limit),
                (expected.0, expected.2),
                "{target} {registers} {threads} {shared}"
            );
            assert!((actual.share - expected.1).abs() < 1e-12, "{actual:?}");
        }
        assert_eq!(occupancy("ptx", 32, 256, 0), None);
        assert_eq!(occupancy("sm_90a", 32, 256, 300 * 1024).map(|actual| actual.blocks), Some(0));
    }
}
