//! The time of day, and a moment as a date in UTC.
//!
//! Checked by its own tests. Called by what records or shows when something was made.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Since the start of 1970, UTC; 0 where the clock stands before that.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// `2026-11-21 05:20:00`, from seconds since 1970.
pub fn to_the_second(seconds: u64) -> String {
    format!("{}:{:02}", to_the_minute(seconds), seconds % 60)
}

/// `2026-11-21 05:20`: days to a date of the Gregorian calendar by Howard Hinnant's `civil_from_days` (chrono-compatible
/// low-level date algorithms).
pub fn to_the_minute(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (rest / 3_600, rest / 60 % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}")
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
    }
}
