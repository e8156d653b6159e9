//! Launches that are recorded once and replayed as one piece of work: a CUDA graph on a GPU, a list on the emulator.
//!
//! While a capture is open, launches are kept and not done, and everything else that touches the device is refused: a
//! GPU could not record it, and the emulator refuses it so that tests find it. The list of launches is kept on a GPU
//! too, for profiles, which want to see each.

use std::cell::{Cell, RefCell};

use cudarc::driver::CudaGraph;

use super::{Call, Cost, Kernel};
use crate::engine::{Error, Phase, Result};

/// One recorded launch.
#[derive(Clone, Debug)]
pub struct Captured {
    pub call: Call,
    /// The phase, where one began in the recording: before, a launch is of the phase in which it is replayed.
    pub phase: Option<Phase>,
    /// The layer of which it was recorded.
    pub layer: Option<usize>,
}

/// Launches in their order, with the very parameters of the recording: addresses and numbers are baked in.
pub struct Graph {
    launches: Vec<Captured>,
    /// What a GPU replays.
    pub(super) native: Option<CudaGraph>,
}

impl Graph {
    pub(super) fn new(launches: Vec<Captured>, native: Option<CudaGraph>) -> Self {
        Self { launches, native }
    }

    pub fn launches(&self) -> &[Captured] {
        &self.launches
    }
}

/// What a driver keeps between the beginning and the end of a capture.
#[derive(Default)]
pub(super) struct Capture {
    phase: Cell<Option<Phase>>,
    layer: Cell<Option<usize>>,
    launches: RefCell<Option<Vec<Captured>>>,
}

impl Capture {
    pub fn is_open(&self) -> bool {
        self.launches.borrow().is_some()
    }

    /// # Errors
    /// In a capture: they do not nest.
    pub fn begin(&self) -> Result<()> {
        self.forbid("begin_capture")?;
        *self.launches.borrow_mut() = Some(Vec::new());
        self.phase.set(None);
        Ok(())
    }

    /// # Errors
    /// Outside of a capture.
    pub fn end(&self) -> Result<Vec<Captured>> {
        let launches = self.launches.borrow_mut().take();
        launches.ok_or_else(|| Error::Driver { call: "end_capture", message: "no capture was begun".into() })
    }

    /// Refuses a call that cannot be recorded.
    pub fn forbid(&self, call: &'static str) -> Result<()> {
        if self.is_open() {
            let message = "inside a capture, where only kernels may be launched".into();
            return Err(Error::Driver { call, message });
        }
        Ok(())
    }

    /// Keeps a launch where a capture is open, and says whether one is.
    pub fn keep(&self, kernel: &Kernel, grid: [u32; 3], params: &[u8], cost: Cost) -> bool {
        let mut launches = self.launches.borrow_mut();
        let Some(launches) = launches.as_mut() else { return false };
        let call = Call::new(kernel, grid, params, cost);
        launches.push(Captured { call, phase: self.phase.get(), layer: self.layer.get() });
        true
    }

    pub fn phase(&self, phase: Phase) {
        self.phase.set(Some(phase));
    }

    pub fn layer(&self, layer: Option<usize>) {
        self.layer.set(layer);
    }
}
