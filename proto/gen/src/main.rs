//! Makes the sources of `vnode-proto`: `cargo run -p vnode-proto-gen`. Needs no `protoc`.
//!
//! A program of its own, so that a build of vnode compiles neither it nor what it is made of.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use protox::prost::Message as _;

const PROTO: &str = "vnode/provider/v1/provider.proto";

/// File names and contents.
type Files = Vec<(&'static str, Vec<u8>)>;

/// What is made.
fn generate(root: &Path) -> Result<Files, Box<dyn Error>> {
    let descriptors = protox::compile([PROTO], [root])?;
    let out = tempfile::tempdir()?;
    tonic_prost_build::configure()
        .out_dir(out.path())
        .build_transport(false)
        .bytes(".")
        .btree_map(".")
        .skip_debug([
            ".vnode.provider.v1.EnvVar",
            ".vnode.provider.v1.Container",
            ".vnode.provider.v1.VolumeFile",
            ".vnode.provider.v1.PullCredentials",
        ])
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .compile_fds(descriptors.clone())?;
    let code = fs::read(out.path().join("vnode.provider.v1.rs"))?;
    Ok(vec![("vnode.provider.v1.rs", code), ("descriptors.bin", descriptors.encode_to_vec())])
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn main() -> Result<(), Box<dyn Error>> {
    let root = root();
    for (name, content) in generate(&root)? {
        fs::write(root.join("src/generated").join(name), content)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generated_sources_are_those_of_the_protocol() {
        let root = root();
        for (name, content) in generate(&root).unwrap() {
            let kept = fs::read(root.join("src/generated").join(name)).unwrap_or_default();
            assert!(kept == content, "proto/src/generated/{name} has drifted: run `cargo run -p vnode-proto-gen`");
        }
    }
}
