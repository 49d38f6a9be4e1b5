//! The protocol between `vnode` and services that run pods: messages, client, and with the feature `server` the trait
//! that a service in Rust implements.
//!
//! [`v1`] is made from `vnode/provider/v1/provider.proto`, which says what each call must do, by
//! `cargo run -p vnode-proto-gen`. It is kept with the sources, so that nobody needs a compiler of protocols to build.

use std::fmt;

/// Version 1 of the protocol.
#[rustfmt::skip]
#[allow(missing_docs, clippy::all, reason = "generated; the protocol's comments are its documentation")]
pub mod v1 {
    include!("generated/vnode.provider.v1.rs");
}

/// Descriptors of the protocol, for servers that offer reflection.
#[cfg(feature = "server")]
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptors.bin");

/// The name by which the health of a service is asked for.
pub const HEALTH_NAME: &str = "vnode.provider.v1.ProviderService";

/// Names of metadata.
pub mod metadata {
    /// The node's name.
    pub const NODE: &str = "vnode-node";
    /// The uid of its VirtualNode.
    pub const NODE_UID: &str = "vnode-node-uid";
    /// How often the node has changed hands.
    pub const EPOCH: &str = "vnode-epoch";
    /// Beside INVALID_ARGUMENT: the path of the field of the pod.
    pub const FIELD: &str = "vnode-field";
    /// Beside FAILED_PRECONDITION: the word that becomes the pod's reason.
    pub const REASON: &str = "vnode-reason";
    /// How long to wait, in milliseconds.
    pub const RETRY: &str = "grpc-retry-pushback-ms";
}

// What may be secret is not shown.

impl fmt::Debug for v1::EnvVar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = if self.secret { "<secret>" } else { &self.value };
        write!(f, "{}={value:?}", self.name)
    }
}

impl fmt::Debug for v1::Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container").field("env", &self.env).field("mounts", &self.mounts).finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::VolumeFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:04o}, {} bytes)", self.path, self.mode, self.content.len())
    }
}

impl fmt::Debug for v1::PullCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "credentials for {}", self.registry)
    }
}

#[cfg(test)]
mod tests {
    use super::v1;

    #[test]
    fn no_debug_output_shows_a_secret() {
        let secret = || "hunter2".to_owned();
        let var = v1::EnvVar { name: "TOKEN".into(), value: secret(), secret: true };
        let container = v1::Container { env: vec![var], command: vec![secret()], ..Default::default() };
        let file =
            v1::VolumeFile { path: "token".into(), content: secret().into(), secret: true, ..Default::default() };
        let files = v1::volume::Kind::Files(v1::FileSet { files: vec![file] });
        let pod = v1::Pod {
            containers: [("main".to_owned(), container)].into(),
            volumes: [("token".to_owned(), v1::Volume { kind: Some(files) })].into(),
            pull_credentials: vec![v1::PullCredentials { password: secret(), ..Default::default() }],
            ..Default::default()
        };
        let text = format!("{pod:?}");
        assert!(text.contains("TOKEN") && !text.contains("hunter2"), "{text}");
        assert!(!text.contains(&format!("{:?}", b"hunter2")), "{text}");
    }
}
