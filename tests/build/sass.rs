//! `scripts/check-sass.sh` on machine code of nvcc 13.0: one kernel as it should be, and faulty ones.

use std::process::Command;

/// Exit code and stdout of the check of a file.
fn check(file: &str) -> (Option<i32>, String) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/check-sass.sh");
    let output = Command::new(script).arg(file).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

const SASS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sass/wgmma.txt");

#[test]
fn each_kernel_is_looked_at() {
    let (code, stdout) = check(SASS);
    assert_eq!(code, Some(1), "{stdout}");
    let line = |kernel: &str| stdout.lines().find(|line| line.starts_with(kernel)).unwrap_or_default();
    assert_eq!(stdout.lines().count(), 4, "{stdout}");
    assert!(line("sample_wgmma_64x8").ends_with("1 HGMMA, 1 UTMALDG, 0 LDL, 0 STL: ok"), "{stdout}");
    assert!(line("plain_wgmma_without_tma").ends_with("FAILED, no UTMALDG"), "{stdout}");
    assert!(line("spilling_wgmma").contains("1 LDL, 4 STL: FAILED, local memory"), "{stdout}");
    assert_eq!(line("unordered"), "unordered: FAILED, no ACQBULK", "{stdout}");
}

#[test]
fn good_code_and_code_without_wgmma_pass() {
    let folder = tempfile::TempDir::new().unwrap();
    let text = std::fs::read_to_string(SASS).unwrap();
    let of = |kernel: &str| {
        let start = text.find(&format!("Function : {kernel}")).unwrap();
        let rest = &text[start..];
        let end = rest[1..].find("Function : ").map_or(rest.len(), |end| end + 1);
        let file = folder.path().join(kernel);
        std::fs::write(&file, &rest[..end]).unwrap();
        check(file.to_str().unwrap())
    };
    assert_eq!(of("sample_wgmma_64x8").0, Some(0));
    let (code, stdout) = of("other");
    assert_eq!((code, stdout.trim()), (Some(0), "no kernel has _wgmma in its symbol"));
}
