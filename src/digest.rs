//! SHA-256 as lower-case hexadecimal text, the name of bytes in manifests, records and tables of archives.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

/// Of bytes in memory.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Of all that a reader gives, 64 KiB at a time.
pub fn sha256_of(mut reader: impl Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut block = vec![0; 1 << 16];
    loop {
        match reader.read(&mut block)? {
            0 => return Ok(hex(&hasher.finalize())),
            read => hasher.update(&block[..read]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_give_the_digests_of_fips_180_4() {
        // The examples of the standard: "abc", and a million times "a", which is more than one block of the reader.
        let long = vec![b'a'; 1_000_000];
        for (bytes, expected) in [
            (b"abc".as_slice(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (&long, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
        ] {
            assert_eq!(sha256(bytes), expected);
            assert_eq!(sha256_of(bytes).unwrap(), expected);
        }
    }
}
