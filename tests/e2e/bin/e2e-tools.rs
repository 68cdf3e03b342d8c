//! The program of `billing-tools`, for the tests that start it.

use std::process::ExitCode;

fn main() -> ExitCode {
    billing_tools::main()
}
