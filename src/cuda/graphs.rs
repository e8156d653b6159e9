//! Work that comes again and again, recorded once and replayed: the cache of an engine's graphs.
//!
//! A graph bakes in every address and number of its launches, so its key holds all of them that may differ. What is
//! written in place between two replays (the weights that an optimizer step moves, the folded ones) needs no new graph.

use super::driver::{Driver, Graph};
use crate::engine::Result;

/// Graphs that are kept: the micro-batches of a batch, whole and last, at a few step counts. 1,024 images are 16 of 64 where a cache is
/// small; work that comes round in a longer cycle would never find its graph.
const KEPT: usize = 64;

/// Graphs by key, the one used last at the end.
pub struct Graphs<K> {
    on: bool,
    /// `None` where the work was done once, which loads the kernels' code, and not recorded yet: what never comes again is not
    /// worth a recording.
    kept: Vec<(K, Option<Graph>)>,
}

impl<K: PartialEq> Graphs<K> {
    /// Records and replays, or does all work directly.
    pub fn new(on: bool) -> Self {
        Self { on, kept: Vec::new() }
    }

    /// Does `work`, which launches kernels and nothing else: directly the first time, by replay where it comes again.
    pub fn run(&mut self, driver: &dyn Driver, key: K, work: impl FnOnce() -> Result<()>) -> Result<()> {
        if !self.on || !driver.captures() {
            return work();
        }
        let known = self.kept.iter().position(|(kept, _)| *kept == key).map(|at| self.kept.remove(at).1);
        let graph = match known {
            None => {
                work()?;
                None
            }
            Some(graph) => {
                let graph = match graph {
                    Some(graph) => graph,
                    None => record(driver, work)?,
                };
                driver.replay(&graph)?;
                Some(graph)
            }
        };
        if self.kept.len() == KEPT {
            self.kept.remove(0);
        }
        self.kept.push((key, graph));
        Ok(())
    }
}

/// The launches of `work`, which are not done.
fn record(driver: &dyn Driver, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
    driver.begin_capture()?;
    let done = work();
    // The capture ends in any case: the stream is of no use otherwise.
    let graph = driver.end_capture();
    done?;
    graph
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::super::driver::host::HostDriver;
    use super::super::driver::{Address, Buffer, Cost, Kernel, MapSpec, TensorMap};
    use super::*;
    use crate::engine::{DeviceInfo, Error};
    use crate::ops::last_layer::{StepLogitsParams, step_logits};

    /// The host driver, and how often it recorded and replayed.
    struct Counting {
        host: Rc<dyn Driver>,
        recorded: Cell<usize>,
        replayed: Cell<usize>,
    }

    impl Driver for Counting {
        fn info(&self) -> DeviceInfo {
            self.host.info()
        }
        fn alloc(&self, name: &'static str, bytes: usize) -> Result<Address> {
            self.host.alloc(name, bytes)
        }
        fn free(&self, address: Address) {
            self.host.free(address);
        }
        fn write(&self, address: Address, bytes: &[u8]) -> Result<()> {
            self.host.write(address, bytes)
        }
        fn read(&self, address: Address, bytes: &mut [u8]) -> Result<()> {
            self.host.read(address, bytes)
        }
        fn fill(&self, address: Address, byte: u8, count: usize) -> Result<()> {
            self.host.fill(address, byte, count)
        }
        fn copy(&self, from: Address, to: Address, count: usize) -> Result<()> {
            self.host.copy(from, to, count)
        }
        fn launch(&self, kernel: &Kernel, grid: [u32; 3], params: &[u8], cost: Cost) -> Result<()> {
            self.host.launch(kernel, grid, params, cost)
        }
        fn synchronize(&self) -> Result<()> {
            self.host.synchronize()
        }
        fn tensor_map(&self, spec: &MapSpec) -> Result<TensorMap> {
            self.host.tensor_map(spec)
        }
        fn has_wgmma(&self) -> bool {
            self.host.has_wgmma()
        }
        fn captures(&self) -> bool {
            self.host.captures()
        }
        fn begin_capture(&self) -> Result<()> {
            self.recorded.set(self.recorded.get() + 1);
            self.host.begin_capture()
        }
        fn end_capture(&self) -> Result<Graph> {
            self.host.end_capture()
        }
        fn replay(&self, graph: &Graph) -> Result<()> {
            self.replayed.set(self.replayed.get() + 1);
            self.host.replay(graph)
        }
    }

    /// A cache, and a number that one launch counts up in place.
    struct Bench {
        driver: Rc<Counting>,
        graphs: Graphs<u32>,
        number: Buffer,
        features: Buffer,
        vector: Buffer,
        calls: Cell<usize>,
    }

    impl Bench {
        fn new() -> Self {
            let (recorded, replayed) = (Cell::new(0), Cell::new(0));
            let driver = Rc::new(Counting { host: HostDriver::open(), recorded, replayed });
            let shared: Rc<dyn Driver> = driver.clone();
            let number = Buffer::from_slice(&shared, "number", &[0.0f32]).unwrap();
            let features = Buffer::from_slice(&shared, "features", &[0.0f32; 128]).unwrap();
            let mut vector = [0.0f64; 129];
            vector[128] = -1.0;
            let vector = Buffer::from_slice(&shared, "vector", &vector).unwrap();
            Self { driver, graphs: Graphs::new(true), number, features, vector, calls: Cell::new(0) }
        }
        fn run(&mut self, key: u32) {
            let [features, vector, number] =
                [&self.features, &self.vector, &self.number].map(Buffer::address);
            let params = StepLogitsParams {
                features,
                vector,
                logits: number,
                moved: number,
                rate: 1.0,
                len: 1,
                classes: 1,
                width: 128,
                padding: 0,
            };
            let work = || {
                self.calls.set(self.calls.get() + 1);
                step_logits(&*self.driver, &params)
            };
            self.graphs.run(&*self.driver, key, work).unwrap();
        }
        /// How often work was called, recorded and replayed, and what the number says of how often it was done.
        fn counts(&self) -> [usize; 4] {
            let done = self.number.to_vec::<f32>().unwrap()[0];
            [self.calls.get(), self.driver.recorded.get(), self.driver.replayed.get(), done as usize]
        }
    }

    #[test]
    fn what_comes_again_is_recorded_once_and_replayed() {
        let mut bench = Bench::new();
        for expected in [[1, 0, 0, 1], [2, 1, 1, 2], [2, 1, 2, 3], [2, 1, 3, 4]] {
            bench.run(7);
            assert_eq!(bench.counts(), expected);
        }
        bench.run(8);
        bench.run(7);
        assert_eq!(bench.counts(), [3, 1, 4, 6], "another key is other work");
        bench.graphs = Graphs::new(false);
        bench.run(7);
        bench.run(7);
        assert_eq!(bench.counts(), [5, 1, 4, 8], "switched off");
    }

    #[test]
    fn the_key_used_longest_ago_goes() {
        let mut bench = Bench::new();
        bench.run(0);
        bench.run(0);
        // As many more as there is room for, with 0 used in between.
        (1..KEPT as u32).for_each(|key| bench.run(key));
        bench.run(0);
        bench.run(KEPT as u32);
        bench.run(0);
        assert_eq!(bench.driver.recorded.get(), 1, "0 was kept");
        bench.run(1);
        assert_eq!(bench.driver.recorded.get(), 1, "1 was not: it is new again");
        bench.run(1);
        assert_eq!((bench.driver.recorded.get(), bench.graphs.kept.len()), (2, KEPT));
    }

    #[test]
    fn a_failed_recording_ends_and_is_forgotten() {
        let mut bench = Bench::new();
        bench.run(1);
        let failed = || Err(Error::Invalid("no such work".into()));
        let error = bench.graphs.run(&*bench.driver, 1, failed).unwrap_err().to_string();
        assert!(error.contains("no such work"), "{error}");
        // No capture is open: what follows is done at once, as new work.
        bench.run(1);
        assert_eq!(bench.counts(), [2, 1, 0, 2]);
    }
}
