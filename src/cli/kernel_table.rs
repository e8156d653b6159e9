//! `secateur profile --static`: what each kernel declares (block size, shared memory) beside what ptxas found for each target
//! that this build has code for (registers, spills) and the blocks that fit on a multiprocessor. No GPU is needed.

use super::console::Console;
use crate::cuda::driver::{Kernel, Usage, kernels, occupancy, static_table};

/// Prints the table of the kernels whose symbol holds `filter`.
pub fn print(filter: &str, console: &Console) {
    console.lines(table(kernels().values(), static_table(), filter));
    if static_table().is_empty() {
        console.note("this build has no GPU code, so registers and spills are not known: scripts/install-nvcc.sh, then build");
    }
}

/// One line a kernel and target, sorted.
fn table<'a>(kernels: impl Iterator<Item = &'a Kernel>, usages: &[Usage], filter: &str) -> Vec<String> {
    let mut shown: Vec<&Kernel> = kernels.filter(|kernel| kernel.name().contains(filter)).collect();
    shown.sort_by_key(|kernel| kernel.name());
    let width = shown.iter().map(|kernel| kernel.name().len()).max().unwrap_or(0).max("kernel".len());
    let row = |cells: [String; 10]| {
        let [kernel, target, threads, shared, registers, stack, spills, blocks, share, limit] = cells;
        format!(
            "{kernel:width$}  {target:7} {threads:>7} {shared:>8} {registers:>9} {stack:>6} {spills:>7} {blocks:>9} {share:>9}  \
             {limit}"
        )
    };
    let heading = [
        "kernel",
        "target",
        "threads",
        "shared B",
        "registers",
        "stack",
        "spill B",
        "blocks/SM",
        "occupancy",
        "limited by",
    ];
    let mut lines = vec![row(heading.map(String::from))];
    for kernel in shown {
        let declared = |target: &str, rest: [String; 6], shared: u32| {
            let [registers, stack, spills, blocks, share, limit] = rest;
            let shared = (kernel.shared_bytes() + shared).to_string();
            let (name, target, threads) =
                (kernel.name().to_string(), target.to_string(), kernel.threads().to_string());
            row([name, target, threads, shared, registers, stack, spills, blocks, share, limit])
        };
        let mut known = usages.iter().filter(|usage| usage.kernel == kernel.name()).peekable();
        if known.peek().is_none() {
            lines.push(declared("-", ["-"; 6].map(String::from), 0));
        }
        lines.extend(known.map(|usage| {
            let spills = usage.spill_stores + usage.spill_loads;
            let [registers, stack, spills] = [usage.registers, usage.stack, spills].map(|n| n.to_string());
            let shared = kernel.shared_bytes() + usage.shared;
            let actual = occupancy(usage.target, usage.registers, kernel.threads(), shared);
            let [blocks, share, limit] = match actual {
                Some(actual) => [
                    actual.blocks.to_string(),
                    format!("{:.1} %", 100.0 * actual.share),
                    actual.limit.to_string(),
                ],
                None => ["-"; 3].map(String::from),
            };
            declared(usage.target, [registers, stack, spills, blocks, share, limit], usage.shared)
        }));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_has_one_line_a_target() {
        let kernel = Kernel::named("perturb_uniform").unwrap();
        let usage = |target, registers| Usage {
            kernel: "perturb_uniform",
            target,
            registers,
            shared: 0,
            stack: 0,
            spill_stores: 0,
            spill_loads: 0,
        };
        let lines = table([kernel].iter(), &[usage("sm_80", 40), usage("sm_90a", 42)], "");
        let cells = |line: &str| line.split_whitespace().map(String::from).collect::<Vec<_>>();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert_eq!(
            cells(&lines[1]),
            ["perturb_uniform", "sm_80", "256", "0", "40", "0", "0", "6", "75.0", "%", "registers"]
        );
        assert_eq!(
            cells(&lines[2]),
            ["perturb_uniform", "sm_90a", "256", "0", "42", "0", "0", "5", "62.5", "%", "registers"]
        );
        let lines = table([kernel].iter(), &[], "uniform");
        assert_eq!(cells(&lines[1]), ["perturb_uniform", "-", "256", "0", "-", "-", "-", "-", "-", "-"]);
        assert_eq!(table([kernel].iter(), &[], "normal").len(), 1);
    }
}
