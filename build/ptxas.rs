//! What ptxas says about each kernel: registers, shared memory, spills, and the remarks that mean a slow kernel.

/// What one kernel takes on one target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub kernel: String,
    /// `sm_90a`
    pub target: String,
    /// Registers a thread.
    pub registers: u32,
    /// Static shared memory, bytes a block; ours is dynamic, and in the host library's table.
    pub shared: u32,
    /// Bytes a thread.
    pub stack: u32,
    pub spill_stores: u32,
    pub spill_loads: u32,
}

/// The remarks of ptxas about wgmma that it had to wait for: each costs more than the kernel gains. The last is part of many,
/// such as C7520.
const SERIALISED: [&str; 5] =
    ["(C7510)", "(C7511)", "(C7515)", "(C7517)", "wgmma.mma_async instructions are serialized"];

/// Reads `ptxas -v` output.
pub fn usages(log: &str) -> Result<Vec<Usage>, String> {
    let mut found: Vec<Usage> = Vec::new();
    let mut current: Option<Usage> = None;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let mut quoted = rest.split('\'');
            let (Some(kernel), Some(target)) = (quoted.next(), quoted.nth(1)) else {
                return Err(format!("ptxas output not understood: {line}"));
            };
            current = Some(Usage { kernel: kernel.into(), target: target.into(), ..Usage::default() });
        } else if line.contains("bytes stack frame") {
            let Some(usage) = &mut current else { continue };
            usage.stack = number_before(line, " bytes stack frame")?;
            usage.spill_stores = number_before(line, " bytes spill stores")?;
            usage.spill_loads = number_before(line, " bytes spill loads")?;
        } else if line.contains("Used ") && line.contains(" registers") {
            let Some(mut usage) = current.take() else { continue };
            usage.registers = number_before(line, " registers")?;
            if line.contains(" bytes smem") {
                usage.shared = number_before(line, " bytes smem")?;
            }
            found.push(usage);
        }
    }
    match current {
        Some(usage) => Err(format!("ptxas output ends before the registers of {}", usage.kernel)),
        None => Ok(found),
    }
}

fn number_before(line: &str, unit: &str) -> Result<u32, String> {
    line.split_once(unit)
        .and_then(|(before, _)| before.rsplit(|c: char| !c.is_ascii_digit()).next())
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| format!("ptxas output not understood: no number before '{unit}' in '{line}'"))
}

/// What is wrong with the kernels that this output is about: spills, stack frames, serialised wgmma. Empty if nothing is.
pub fn faults(log: &str) -> Result<Vec<String>, String> {
    let mut faults = Vec::new();
    for usage in usages(log)? {
        let Usage { kernel, target, registers, stack, spill_stores, spill_loads, .. } = usage;
        if spill_stores + spill_loads > 0 {
            faults.push(format!(
                "kernel {kernel} on {target} spills registers ({spill_stores} bytes stored, {spill_loads} loaded, \
                 {registers} registers): give its threads less to hold, or its block fewer threads"
            ));
        } else if stack > 0 {
            faults.push(format!(
                "kernel {kernel} on {target} has a stack frame of {stack} bytes: an array is indexed by a value that the \
                 compiler does not know; unroll the loop"
            ));
        }
    }
    for line in log.lines() {
        if SERIALISED.iter().any(|code| line.contains(code)) {
            faults.push(format!("serialised wgmma: {}", line.trim()));
        }
    }
    Ok(faults)
}

/// The kernels in a PTX file.
pub fn entries(ptx: &str) -> Vec<String> {
    ptx.lines()
        .filter_map(|line| line.split_once(".entry ")?.1.split(['(', ' ']).next().map(String::from))
        .collect()
}
