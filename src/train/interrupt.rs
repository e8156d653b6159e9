//! Interrupts: the first asks the run to finish its step and save, the second ends the process at once.
//!
//! Checked by `tests/cli.rs` on a real process. Installed by the commands that run for long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit code of an interrupted command: 128 + SIGINT.
pub const EXIT_INTERRUPTED: i32 = 130;

/// Whether the user, or the system (SIGTERM, SIGHUP), asked to stop.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches Ctrl-C and termination signals from now on. Once a process.
    pub fn install() -> Result<Self, ctrlc::Error> {
        let interrupt = Self::default();
        let flag = interrupt.clone();
        ctrlc::set_handler(move || {
            if flag.0.swap(true, Ordering::SeqCst) {
                std::process::exit(EXIT_INTERRUPTED);
            }
        })?;
        Ok(interrupt)
    }

    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
