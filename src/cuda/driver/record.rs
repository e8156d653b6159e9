//! A driver that wraps another and keeps, while it is asked to, what each launch was and how long it took.
//!
//! On a GPU a launch is timed between two events of the stream, which add about a microsecond to it; on the emulator by the
//! clock. A launch is kept as it is made and its times are asked for at the end, so that recording makes nobody wait.
//!
//! A launch can be made again by itself, from its kernel, grid and parameter bytes ([`Recording::replay`]); the memory
//! that its parameters name is then held back from being freed.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::nccl::DeviceGroup;
use super::{
    Address, Buffer, Call, Cost, DeviceOptions, Driver, FLUSH_FACTOR, Graph, Kernel, MapSpec, Mark, TensorMap,
};
use crate::collective::Collective;
use crate::engine::{DeviceInfo, Error, Launch, Phase, Record, Result};

/// One launch, its times still to be asked for.
struct Pending {
    call: Call,
    phase: Phase,
    layer: Option<usize>,
    from: Mark,
    to: Mark,
}

/// What the driver and the handle share.
#[derive(Default)]
struct Log {
    on: Cell<bool>,
    /// Whether memory that is given back stays as it is, for replays.
    holding: Cell<bool>,
    held: RefCell<Vec<Address>>,
    /// Launches are recorded and not done.
    capturing: Cell<bool>,
    phase: Cell<Phase>,
    layer: Cell<Option<usize>>,
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
    /// The launches of the last record that was made to be replayed.
    calls: Vec<Call>,
    /// What [`Recording::replay`] overwrites before a cold launch.
    flush: Option<Buffer>,
}

impl Recorder {
    /// `driver`, and the handle of its record; nothing is kept yet.
    pub fn wrap(driver: Rc<dyn Driver>) -> (Rc<dyn Driver>, Recording) {
        let log = Rc::new(Log::default());
        let recording = Recording {
            inner: driver.clone(),
            log: log.clone(),
            origin: None,
            calls: Vec::new(),
            flush: None,
        };
        (Rc::new(Self { inner: driver, log }), recording)
    }
}

impl Recording {
    /// Keeps every launch from here on; profilers that watch the process look from here on too. Where `replayable`, memory
    /// that is given back meanwhile is held until [`Recording::release`], so that the launches can be made again.
    pub fn start(&mut self, replayable: bool) -> Result<()> {
        self.release();
        self.log.holding.set(replayable);
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
        let replayable = self.log.holding.replace(false);
        let Some(origin) = self.origin.take() else { return Ok(Record::default()) };
        let end = self.inner.mark()?;
        self.inner.synchronize()?;
        self.inner.profiler(false)?;
        let seconds = |from: &Mark, to: &Mark| self.inner.seconds(from, to);
        let pending = std::mem::take(&mut *self.log.launches.borrow_mut());
        let launch = |launch: &Pending| {
            Ok(Launch {
                kernel: launch.call.kernel.name(),
                grid: launch.call.grid,
                phase: launch.phase,
                layer: launch.layer,
                start: seconds(&origin, &launch.from)?,
                seconds: seconds(&launch.from, &launch.to)?,
                flops: launch.call.cost.flops,
                bytes: launch.call.cost.bytes,
            })
        };
        let launches = pending.iter().map(launch).collect::<Result<_>>()?;
        let record = Record { launches, seconds: seconds(&origin, &end)? };
        if replayable {
            self.calls = pending.into_iter().map(|launch| launch.call).collect();
        }
        Ok(record)
    }

    /// Makes launch number `at` of the last replayable record again, `times` times back to back, and returns the seconds of
    /// all of them; where `cold`, every cache is overwritten first, outside of that time. What the kernel reads and writes is
    /// what the work left behind: the results mean nothing, and sums that it adds to grow.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is no such launch.
    pub fn replay(&mut self, at: usize, times: usize, cold: bool) -> Result<f64> {
        let Some(call) = self.calls.get(at) else {
            return Err(Error::Invalid(format!(
                "launch {at} of a record of {} that can be replayed",
                self.calls.len()
            )));
        };
        if cold {
            if self.flush.is_none() {
                let bytes = FLUSH_FACTOR * self.inner.cache_bytes();
                self.flush = Some(Buffer::new(&self.inner, "flush of the cache", bytes)?);
            }
            if let Some(flush) = &self.flush {
                self.inner.fill(flush.address(), 0, flush.bytes())?;
            }
        }
        let from = self.inner.mark()?;
        for _ in 0..times {
            call.make(&*self.inner)?;
        }
        let to = self.inner.mark()?;
        self.inner.seconds(&from, &to)
    }

    /// Forgets the launches that could be replayed, and frees what was held for them.
    pub fn release(&mut self) {
        self.calls.clear();
        self.flush = None;
        for address in self.log.held.take() {
            self.inner.free(address);
        }
    }

    /// A moment in the device's work.
    pub fn mark(&self) -> Result<Mark> {
        self.inner.mark()
    }

    /// Seconds between two moments; waits for the later one.
    pub fn seconds(&self, from: &Mark, to: &Mark) -> Result<f64> {
        self.inner.seconds(from, to)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.release();
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
        match self.log.holding.get() {
            true => self.log.held.borrow_mut().push(address),
            false => self.inner.free(address),
        }
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
        let (phase, layer) = (self.log.phase.get(), self.log.layer.get());
        let call = Call::new(kernel, grid, params, cost);
        self.log.launches.borrow_mut().push(Pending { call, phase, layer, from, to });
        Ok(())
    }
    fn synchronize(&self) -> Result<()> {
        self.inner.synchronize()
    }
    fn tensor_map(&self, spec: &MapSpec) -> Result<TensorMap> {
        self.inner.tensor_map(spec)
    }
    fn has_wgmma(&self) -> bool {
        self.inner.has_wgmma()
    }
    fn options(&self) -> DeviceOptions {
        self.inner.options()
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
            if let Some(phase) = launch.phase.filter(|phase| *phase != self.log.phase.get()) {
                self.phase(phase);
            }
            self.layer(launch.layer);
            launch.call.make(self)?;
        }
        self.layer(None);
        Ok(())
    }
    fn layer(&self, layer: Option<usize>) {
        self.log.layer.set(layer);
        self.inner.layer(layer);
    }
    fn join(&self, group: &dyn Collective) -> Result<Option<Box<dyn DeviceGroup>>> {
        self.inner.join(group)
    }
    fn profiler(&self, on: bool) -> Result<()> {
        self.inner.profiler(on)
    }
}
