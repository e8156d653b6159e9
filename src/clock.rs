//! The time of day, and a moment as a date in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

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
