//! `secateur profile --static` in the built program, which also shows that the table of kernels survives its linking.

use assert_cmd::Command;

#[test]
fn the_program_lists_its_kernels() {
    let output = Command::cargo_bin("secateur").unwrap().args(["profile", "--static"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for kernel in ["perturb_uniform", "conv_", "sgd"] {
        assert!(text.contains(kernel), "no {kernel} in:\n{text}");
    }
    assert!(!text.contains("fault_"), "{text}");
}

#[test]
fn profile_needs_to_know_what() {
    let output = Command::cargo_bin("secateur").unwrap().arg("profile").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--static"));
}
