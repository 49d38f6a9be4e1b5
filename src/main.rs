//! vnode
fn main() {}
