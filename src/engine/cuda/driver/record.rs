//! A driver that wraps another and keeps, while it is asked to, what each launch was and how long it took.
//!
//! On a GPU a launch is timed between two events of the stream, which add about a microsecond to it; on the host runner by the
//! clock. A launch is kept as it is made and its times are asked for at the end, so that recording makes nobody wait. Opened
//! by `engine::open_recorded`; checked by `tests/profile.rs`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::{Address, Cost, Driver, Graph, Kernel, Mark};
use crate::engine::{DeviceInfo, Launch, Phase, Record, Result};

/// One launch, its times still to be asked for.
struct Pending {
    kernel: &'static str,
    grid: [u32; 3],
    cost: Cost,
    phase: Phase,
    from: Mark,
    to: Mark,
}

/// What the driver and the handle share.
#[derive(Default)]
struct Log {
    on: Cell<bool>,
    /// Launches are recorded and not done.
    capturing: Cell<bool>,
    phase: Cell<Phase>,
    launches: RefCell<Vec<Pending>>,
}

/// The driver.
pub struct Recorder {
    inner: Rc<dyn Driver>,
    log: Rc<Log>,
}

/// Starts and ends what a [`Recorder`] keeps.
pub struct Recording {
    inner: Rc<dyn Driver>,
    log: Rc<Log>,
    origin: Option<Mark>,
}

impl Recorder {
    /// `driver`, and the handle of its record; nothing is kept yet.
    pub fn wrap(driver: Rc<dyn Driver>) -> (Rc<dyn Driver>, Recording) {
        let log = Rc::new(Log::default());
        let recording = Recording { inner: driver.clone(), log: log.clone(), origin: None };
        (Rc::new(Self { inner: driver, log }), recording)
    }
}

impl Recording {
    /// Keeps every launch from here on; profilers that watch the process look from here on too.
    pub fn start(&mut self) -> Result<()> {
        self.inner.synchronize()?;
        self.inner.profiler(true)?;
        self.log.launches.borrow_mut().clear();
        self.origin = Some(self.inner.mark()?);
        self.log.on.set(true);
        Ok(())
    }

    /// Waits for the work, and gives what was kept since [`Recording::start`]: nothing where that was not called.
    pub fn stop(&mut self) -> Result<Record> {
        self.log.on.set(false);
        let Some(origin) = self.origin.take() else { return Ok(Record::default()) };
        let end = self.inner.mark()?;
        self.inner.synchronize()?;
        self.inner.profiler(false)?;
        let seconds = |from: &Mark, to: &Mark| self.inner.seconds(from, to);
        let pending = std::mem::take(&mut *self.log.launches.borrow_mut());
        let launch = |launch: Pending| {
            Ok(Launch {
                kernel: launch.kernel,
                grid: launch.grid,
                phase: launch.phase,
                start: seconds(&origin, &launch.from)?,
                seconds: seconds(&launch.from, &launch.to)?,
                flops: launch.cost.flops,
                bytes: launch.cost.bytes,
            })
        };
        let launches = pending.into_iter().map(launch).collect::<Result<_>>()?;
        Ok(Record { launches, seconds: seconds(&origin, &end)? })
    }
}

impl Driver for Recorder {
    fn info(&self) -> DeviceInfo {
        self.inner.info()
    }
    fn alloc(&self, name: &'static str, bytes: usize) -> Result<Address> {
        self.inner.alloc(name, bytes)
    }
    fn free(&self, address: Address) {
        self.inner.free(address);
    }
    fn write(&self, address: Address, bytes: &[u8]) -> Result<()> {
        self.inner.write(address, bytes)
    }
    fn read(&self, address: Address, bytes: &mut [u8]) -> Result<()> {
        self.inner.read(address, bytes)
    }
    fn fill(&self, address: Address, byte: u8, count: usize) -> Result<()> {
        self.inner.fill(address, byte, count)
    }
    fn copy(&self, from: Address, to: Address, count: usize) -> Result<()> {
        self.inner.copy(from, to, count)
    }
    fn launch(&self, kernel: &Kernel, grid: [u32; 3], params: &[u8], cost: Cost) -> Result<()> {
        if !self.log.on.get() || self.log.capturing.get() {
            return self.inner.launch(kernel, grid, params, cost);
        }
        let from = self.inner.mark()?;
        self.inner.launch(kernel, grid, params, cost)?;
        let to = self.inner.mark()?;
        let phase = self.log.phase.get();
        self.log.launches.borrow_mut().push(Pending { kernel: kernel.name(), grid, cost, phase, from, to });
        Ok(())
    }
    fn synchronize(&self) -> Result<()> {
        self.inner.synchronize()
    }
    fn mark(&self) -> Result<Mark> {
        self.inner.mark()
    }
    fn seconds(&self, from: &Mark, to: &Mark) -> Result<f64> {
        self.inner.seconds(from, to)
    }
    fn phase(&self, phase: Phase) {
        self.log.phase.set(phase);
        self.inner.phase(phase);
    }
    fn captures(&self) -> bool {
        self.inner.captures()
    }
    fn begin_capture(&self) -> Result<()> {
        self.inner.begin_capture()?;
        self.log.capturing.set(true);
        Ok(())
    }
    fn end_capture(&self) -> Result<Graph> {
        self.log.capturing.set(false);
        self.inner.end_capture()
    }
    /// Launch by launch while a record is kept, so that each is seen.
    fn replay(&self, graph: &Graph) -> Result<()> {
        if !self.log.on.get() {
            return self.inner.replay(graph);
        }
        for launch in graph.launches() {
            self.phase(launch.phase);
            self.launch(&launch.kernel, launch.grid, &launch.params, launch.cost)?;
        }
        Ok(())
    }
    fn profiler(&self, on: bool) -> Result<()> {
        self.inner.profiler(on)
    }
}
