//! The `vnode` program: see [`vnode::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    vnode::cli::main()
}
