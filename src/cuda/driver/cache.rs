//! How large the caches are that a cold measurement overwrites.

/// How often a buffer that flushes a cache holds it: caches do not replace their oldest lines first.
pub const FLUSH_FACTOR: usize = 2;

/// Bytes of a last-level cache where the system does not tell.
const CACHE_BYTES: usize = 64 << 20;

/// Bytes of the largest cache of this CPU, as Linux tells; 64 MiB elsewhere.
pub fn last_level_cache() -> usize {
    let size = |index: usize| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        parsed_size(std::fs::read_to_string(path).ok()?.trim())
    };
    (0..8).filter_map(size).max().unwrap_or(CACHE_BYTES)
}

/// `32768K` or `32M` in bytes.
fn parsed_size(text: &str) -> Option<usize> {
    let (number, unit) = match text.strip_suffix('K') {
        Some(number) => (number, 10),
        None => (text.strip_suffix('M')?, 20),
    };
    number.parse::<usize>().ok()?.checked_mul(1 << unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_caches_are_read() {
        assert_eq!(parsed_size("32768K"), Some(32 << 20));
        assert_eq!(parsed_size("2M"), Some(2 << 20));
        assert_eq!((parsed_size(""), parsed_size("12"), parsed_size("xK")), (None, None, None));
        assert!(last_level_cache() > 0);
    }
}
