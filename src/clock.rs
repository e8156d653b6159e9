//! The time of day, a moment as a date in UTC, and what work takes.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// Wall-clock and CPU seconds since it was started.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch {
    begin: Instant,
    cpu: f64,
}

impl Stopwatch {
    pub fn start() -> Self {
        Self { begin: Instant::now(), cpu: process_cpu_seconds() }
    }

    pub fn wall(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }

    /// Of this process in all its threads: other programs on the machine change it little.
    pub fn cpu(&self) -> f64 {
        process_cpu_seconds() - self.cpu
    }
}

fn process_cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

/// Since the start of 1970, UTC; 0 where the clock stands before that.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// `2026-11-21 05:20:00`, from seconds since 1970.
pub fn to_the_second(seconds: u64) -> String {
    date(seconds, "%Y-%m-%d %H:%M:%S")
}

/// `2026-11-21 05:20`
pub fn to_the_minute(seconds: u64) -> String {
    date(seconds, "%Y-%m-%d %H:%M")
}

/// In UTC; what is too late for a date, as a damaged file may have it, is the latest that there is.
fn date(seconds: u64, format: &str) -> String {
    let moment = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    moment.unwrap_or(Timestamp::MAX).strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopwatch_counts_the_work_of_all_threads_and_no_sleep() {
        let watch = Stopwatch::start();
        std::thread::sleep(Duration::from_millis(50));
        assert!(watch.wall() >= 0.05);
        let work = || while process_cpu_seconds() - watch.cpu < 0.1 {};
        std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
        assert!(watch.cpu() >= 0.1);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_827_696, "2000-02-29 12:34:56"),
            (1_795_238_399, "2026-11-21 05:19:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(to_the_second(seconds), text);
            assert_eq!(to_the_minute(seconds), text[..16]);
        }
        for seconds in [1 << 40, u64::MAX] {
            assert!(to_the_second(seconds).starts_with("9999-12-3"), "{seconds}");
        }
    }
}
