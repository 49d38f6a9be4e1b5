//! Pods as processes of a device that is reached over SSH: for machines that cannot be nodes themselves.
//!
//! ```text
//!  runtime loop ──▶ SshEngine ──▶ Device ──▶ SSH ──▶ a shell of the device, and helper.sh
//!        ▲                                               │ starts and forgets
//!        │                                               ▼
//!        └──── containers that ended ◀──── watch ◀── a supervisor for each container
//! ```
//!
//! Nothing has to be installed on the device: a script for a POSIX shell is put there, which starts each container
//! detached and keeps its log and exit code. So pods outlive connections and operators, and are found again.
//!
//! | module | what it is |
//! |---|---|
//! | `settings` | the configuration, checked |
//! | `hosts` | which host keys are believed |
//! | `dial` | connecting: jumps, host keys, logging in |
//! | `device` | connections, back-off, running scripts |
//! | `helper.sh` | what runs on the device |
//! | `quote` | words and bytes that a shell leaves alone |
//! | `script` | what the device is told: pure, but for reading files |
//! | `found`, `machine` | what it says: pure |
//! | `engine` | the [`Engine`](super::runtime::Engine) of the loop |
//! | `events`, `lines`, `logs` | what happens, and what containers write |
//! | `exec`, `forward` | commands, attach, ports |

mod device;
mod dial;
mod engine;
mod events;
mod exec;
mod forward;
mod found;
mod hosts;
mod lines;
mod logs;
mod machine;
mod quote;
mod script;
mod settings;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::registry::Factory;
use super::runtime::{self, HostPaths, Runtimes};
use super::{Capabilities, Provider, ProviderContext, ProviderError, Result};
use crate::api::ProviderSpec;
use engine::SshEngine;

/// Makes nodes whose pods are processes of a device.
pub struct SshFactory {
    state: Option<PathBuf>,
    runtimes: Runtimes,
}

impl SshFactory {
    /// Refuses every node: there is no folder for what has to be remembered of pods.
    pub fn without_state() -> Self {
        Self { state: None, runtimes: Runtimes::default() }
    }

    /// Keeps records of pods, the files of their volumes, and host keys that were seen, below the folder `state`.
    pub fn new(state: PathBuf) -> Self {
        Self { state: Some(state), runtimes: Runtimes::default() }
    }
}

// Not pinned to a replica: what has to be known of pods is on the device, and what is kept here only adds to it.
impl Factory for SshFactory {
    fn build(&self, spec: &ProviderSpec, context: ProviderContext) -> Result<Arc<dyn Provider>> {
        let Some(state) = &self.state else {
            return Err(ProviderError::Invalid {
                field: "spec.provider.type".into(),
                message: "this program was given no folder to remember pods in".into(),
            });
        };
        let config = spec.ssh.clone().unwrap_or_default();
        let settings = settings::check(&config, &context, state)?;
        make_state_dir(state)?;
        let node = state.join(&*context.node_uid);
        forget_older(&node, context.epoch).map_err(|error| ProviderError::Unavailable {
            message: format!("looking at {}: {error}", node.display()),
            retry_after: None,
            source: Some(Box::new(error)),
        })?;
        let engine = Arc::new(SshEngine::new(settings));
        Ok(self.runtimes.get_or_start_with(&context, engine, state, HostPaths::Elsewhere))
    }

    fn capabilities(&self) -> Option<Capabilities> {
        Some(runtime::capabilities(engine::capabilities(true)))
    }
}

/// What is in it may be secret.
fn make_state_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| ProviderError::Unavailable {
        message: format!("making {}: {error}; --state-dir names another folder", dir.display()),
        retry_after: None,
        source: Some(Box::new(error)),
    })
}

/// Removes what was remembered of pods before the node was another replica's: it has moved on since, and what became of
/// the pods is on the device.
fn forget_older(node: &Path, epoch: i64) -> io::Result<()> {
    let file = node.join("epoch");
    let kept = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<i64>().ok());
    if kept == Some(epoch) {
        return Ok(());
    }
    runtime::volumes::remove_tree(&node.join("pods"))?;
    std::fs::create_dir_all(node)?;
    std::fs::write(file, epoch.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_kept_until_the_node_was_anothers() {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("pods/uid/record.json");
        for (epoch, kept) in [(3, false), (3, true), (4, false), (4, true)] {
            forget_older(dir.path(), epoch).unwrap();
            assert_eq!(record.exists(), kept, "{epoch}");
            std::fs::create_dir_all(record.parent().unwrap()).unwrap();
            std::fs::write(&record, "x").unwrap();
        }
    }
}
