//! Signals: the first asks the work to stop and keep what is done, the second ends the process at once.
//!
//! A signal that is ignored when the process starts stays ignored, as `nohup` (hang-up) and shells without job control (Ctrl-C of a
//! background command) want it.

use std::io;

use crate::engine::StopFlag;

/// Exit code of an interrupted command: 128 + SIGINT.
pub const EXIT_INTERRUPTED: i32 = 130;

/// Catches Ctrl-C and termination signals from now on: each requests a stop. Once a process.
pub fn catch() -> io::Result<StopFlag> {
    let stop = StopFlag::default();
    for &signal in SIGNALS {
        if is_ignored(signal)? {
            continue;
        }
        let flag = stop.shared();
        // In this order: the first signal finds the flag down.
        signal_hook::flag::register_conditional_shutdown(signal, EXIT_INTERRUPTED, flag.clone())?;
        signal_hook::flag::register(signal, flag)?;
    }
    Ok(stop)
}

#[cfg(unix)]
const SIGNALS: &[i32] = &[libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
#[cfg(not(unix))]
const SIGNALS: &[i32] = &[signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM];

/// Makes a write beyond the limit on file sizes (`ulimit -f`) an error of that write; the signal that comes with it would end the
/// process without a word.
pub fn survive_file_size_limit() -> io::Result<()> {
    // Caught and not ignored: what is ignored stays so in programs that this one runs.
    #[cfg(unix)]
    if !is_ignored(libc::SIGXFSZ)? {
        signal_hook::flag::register(libc::SIGXFSZ, StopFlag::default().shared())?;
    }
    Ok(())
}

#[cfg(unix)]
fn is_ignored(signal: i32) -> io::Result<bool> {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: no new action is given, so nothing changes; the present one is written to memory of its type.
    let failed = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the action is there.
    Ok(unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN)
}

#[cfg(not(unix))]
fn is_ignored(_signal: i32) -> io::Result<bool> {
    Ok(false)
}
