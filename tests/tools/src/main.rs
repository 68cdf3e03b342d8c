//! The program of this package; see [`billing_tools`].

use std::process::ExitCode;

fn main() -> ExitCode {
    billing_tools::main()
}
