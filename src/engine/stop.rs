//! A request to stop, which an engine checks between two passes of the network: an attack of thousands of passes is one call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Error, Result};

/// Set once, from a signal handler or another thread; its clones are the same request.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// The request as a signal handler sets it.
    pub fn shared(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }

    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// # Errors
    /// [`Error::Stopped`] where the stop is requested.
    pub fn check(&self) -> Result<()> {
        if self.requested() { Err(Error::Stopped) } else { Ok(()) }
    }
}

/// `None` for work that ended with [`Error::Stopped`].
pub fn unless_stopped<T>(done: Result<T>) -> Result<Option<T>> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(Error::Stopped) => Ok(None),
        Err(error) => Err(error),
    }
}
