//! The `vnode` program: see [`vnode::cli`].

use std::process::ExitCode;

/// Nodes and pods are many small objects that come and go on all threads, which costs half as much with it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    vnode::cli::main()
}
