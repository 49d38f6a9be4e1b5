//! Processes behind an SSH server on loopback. No simulator: what is slow about a device is that it starts programs.

use std::sync::Arc;

use vnode::api::{ProviderSpec, SshConfig};
use vnode::provider::registry::Factory as _;
use vnode::provider::ssh::SshFactory;
use vnode::provider::{Credentials, ProviderContext};

use super::{Deaf, Result, Subject, context};

#[path = "../../support/sshd.rs"]
mod sshd;

/// Connections that this machine's server takes at a time.
const DEVICES: usize = 20;
const CALLS: usize = 100;

/// `None`, with a word about it, where there is no server.
pub fn subject() -> Result<Option<Subject>> {
    let Some(server) = sshd::Sshd::start(sshd::Flavour::Machine) else { return Ok(None) };
    let state = tempfile::tempdir()?;
    let factory = SshFactory::new(state.path().to_owned());
    let secret = Credentials([("ssh-privatekey".to_owned(), server.key("user").into())].into());
    let secret = Arc::new(secret);
    let node = move |n| {
        let spec = ProviderSpec::ssh(SshConfig {
            host: "127.0.0.1".into(),
            port: Some(server.port),
            user: server.user(),
            host_key: Some(server.host_key()),
            directory: Some(server.directory().join(format!("node-{n}")).display().to_string()),
            ..SshConfig::default()
        });
        // Kept as long as there are nodes.
        let _ = &state;
        let context = context(&format!("node-{n}"), Arc::new(Deaf));
        factory.build(&spec, ProviderContext { credentials: Some(secret.clone()), ..context })
    };
    Ok(Some(Subject { node: Box::new(node), calls: CALLS, nodes: DEVICES, ..Subject::new("ssh, processes") }))
}
