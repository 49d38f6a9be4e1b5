//! Prints the table of built-in kinds for `docs/development-cluster.md`.
//!
//! `cargo run -p vnode-devcluster --example kinds`

fn main() {
    print!("{}", vnode_devcluster::supported_kinds());
}
