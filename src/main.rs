//! The `secateur` command; everything is in the library.

fn main() -> std::process::ExitCode {
    secateur::cli::main()
}
