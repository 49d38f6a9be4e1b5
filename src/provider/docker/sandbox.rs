//! The container that holds what a pod's containers share: its network, and volumes that are the engine's.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;

use bollard::models::VolumeCreateRequest;
use bollard::query_parameters::{
    CreateContainerOptions, KillContainerOptions, RemoveContainerOptions, RemoveVolumeOptions, StartContainerOptions,
    UploadToContainerOptions,
};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Deserialize;

use super::client::{Failed, Session};
use super::connect::Target;
use super::engine::{DockerEngine, PARALLEL, guard};
use super::found::{Found, Summary};
use super::{archive, body, images, names};
use crate::provider::runtime::{ContainerState, EngineEvent, Sandbox, SandboxSpec};
use crate::provider::{PodRef, ProviderError, ResolvedVolume, Result};

/// A pod's network, as connections to it are made.
#[derive(Clone, Debug)]
pub(super) struct Network {
    pub id: String,
    pub pid: i32,
    pub ips: Vec<IpAddr>,
    pub host: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Volumes {
    #[serde(default)]
    volumes: Option<Vec<Volume>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Volume {
    name: String,
    labels: Option<names::Labels>,
}

impl DockerEngine {
    /// The pod's network holder, running; made if there is none.
    pub(super) async fn make_sandbox(&self, spec: &SandboxSpec) -> Result<Vec<IpAddr>> {
        let name = names::sandbox(&spec.pod);
        let session = self.session().await?;
        let found = match self.inspect(&name).await {
            Ok(found) => found,
            Err(error) if error.is_not_found() => {
                self.create_sandbox_container(spec, &session, &name).await?;
                self.inspect(&name).await.map_err(|e| e.asking("looking at a sandbox"))?
            }
            Err(error) => return Err(error.asking("looking for a sandbox")),
        };
        if found.state.of_container() == ContainerState::Created && self.settings.copy {
            // Before it starts: one that has started has all its files.
            for (volume, content) in body::engine_volumes(spec, true) {
                if matches!(content, ResolvedVolume::Files(_)) {
                    let source = spec.dir.join("volumes").join(volume);
                    self.upload(&session, &name, &source, &names::volume_path(volume)).await?;
                }
            }
        }
        let found = self.ensure_running(&name, found).await?;
        self.sandbox_ips(&found).await
    }

    async fn create_sandbox_container(&self, spec: &SandboxSpec, session: &Session, name: &str) -> Result<()> {
        let image = &self.settings.sandbox_image;
        if images::find(&self.client, image).await?.is_none() {
            images::pull(&self.client, image, &spec.resolved).await?;
        }
        for (volume, content) in body::engine_volumes(spec, self.settings.copy) {
            let request = VolumeCreateRequest {
                name: Some(names::volume(&spec.pod, volume)),
                driver: Some("local".into()),
                driver_opts: Some(body::volume_options(content, session.podman)),
                labels: Some(names::labels(&self.settings.node, &spec.pod)),
                ..VolumeCreateRequest::default()
            };
            let made = session.docker.create_volume(request).await.map_err(Failed::from);
            if let Err(error) = made
                && !self.has_volume(&names::volume(&spec.pod, volume)).await
            {
                return Err(error.doing(""));
            }
        }
        let options = CreateContainerOptions { name: Some(name.to_owned()), ..CreateContainerOptions::default() };
        let body = body::sandbox(spec, &self.settings);
        match session.docker.create_container(Some(options), body).await.map_err(Failed::from) {
            Ok(_) => Ok(()),
            // Another call that was given up may have made it.
            Err(error) if self.inspect(name).await.is_ok() => {
                tracing::debug!(?error, name, "a sandbox was there already");
                Ok(())
            }
            Err(error) => Err(error.doing("")),
        }
    }

    async fn has_volume(&self, name: &str) -> bool {
        self.client.get::<Volume>(&format!("/volumes/{name}")).await.is_ok()
    }

    /// The pod's network holder for a container that is to join it. It is started again when it has ended, as
    /// after a restart of the engine's machine.
    pub(super) async fn joined(&self, pod: &PodRef) -> Result<Found> {
        let name = names::sandbox(pod);
        let found = match self.inspect(&name).await {
            Ok(found) => found,
            Err(error) if error.is_not_found() => {
                self.tell(pod, None);
                return Err(ProviderError::unavailable("the pod's sandbox was removed; it is made again"));
            }
            Err(error) => return Err(error.asking("looking for a sandbox")),
        };
        if found.state.running {
            return Ok(found);
        }
        let found = self.ensure_running(&name, found).await?;
        self.tell(pod, Some(Sandbox { ips: self.sandbox_ips(&found).await? }));
        Ok(found)
    }

    fn tell(&self, pod: &PodRef, sandbox: Option<Sandbox>) {
        guard(&self.networks).remove(&pod.uid);
        // Fails when nobody listens; who comes later lists first.
        let _ = self.told.send(EngineEvent::Sandbox { pod: pod.clone(), sandbox });
    }

    async fn ensure_running(&self, name: &str, found: Found) -> Result<Found> {
        if found.state.running {
            return Ok(found);
        }
        let session = self.session().await?;
        session
            .docker
            .start_container(name, None::<StartContainerOptions>)
            .await
            .map_err(|e| Failed::from(e).doing(""))?;
        let found = self.inspect(name).await.map_err(|e| e.asking("looking at a sandbox"))?;
        if let Some(pod) = names::pod(&found.config.labels) {
            guard(&self.networks).remove(&pod.uid);
        }
        if !found.state.running {
            let message = format!(
                "the sandbox image {:?} does not keep running (exit code {}); spec.provider.docker.sandboxCommand of \
                 the VirtualNode can name a command that does",
                self.settings.sandbox_image, found.state.exit_code
            );
            return Err(ProviderError::Rejected { reason: String::new(), message });
        }
        Ok(found)
    }

    /// The pod's addresses: its own, or those of the engine's machine.
    pub(super) async fn sandbox_ips(&self, found: &Found) -> Result<Vec<IpAddr>> {
        let sharing = found.config.labels.get(names::SHARING).map(|w| body::Sharing::read(w));
        if !sharing.unwrap_or_default().host_network {
            return Ok(found.ips());
        }
        match &self.settings.target {
            Target::Unix(_) => Ok(own_address().into_iter().collect()),
            Target::Tcp { host, port, .. } => {
                let resolved = tokio::net::lookup_host((host.as_str(), *port)).await;
                let resolved = resolved.map_err(|e| ProviderError::unavailable(format!("{host}: {e}")))?;
                Ok(resolved.map(|a| a.ip()).take(1).collect())
            }
        }
    }

    /// How to reach the pod's ports.
    pub(super) async fn network(&self, pod: &PodRef) -> Result<Network> {
        if let Some(known) = guard(&self.networks).get(&pod.uid).cloned() {
            return Ok(known);
        }
        let found = self.inspect(&names::sandbox(pod)).await.map_err(|e| e.asking("looking for a sandbox"))?;
        let ips = self.sandbox_ips(&found).await?;
        let sharing = found.config.labels.get(names::SHARING).map(|w| body::Sharing::read(w)).unwrap_or_default();
        let network = Network { id: found.id, pid: found.state.pid, ips, host: sharing.host_network };
        if found.state.running {
            guard(&self.networks).insert(pod.uid.clone(), network.clone());
        }
        Ok(network)
    }

    /// Removes what has these labels: containers that share what is others' first.
    pub(super) async fn remove_labelled(&self, labels: &[(&str, &str)]) -> Result<()> {
        let filter = names::filter(labels, &[]);
        let path = format!("/containers/json?all=true&{filter}");
        let all: Vec<Summary> = self.client.get(&path).await.map_err(|e| e.asking("listing containers"))?;
        let (holders, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|s| s.labels.contains_key(names::SANDBOX));
        let (guests, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|s| s.labels.contains_key(names::TARGET));
        for group in [guests, others, holders] {
            let removals = group.into_iter().map(|s| self.kill_and_remove(s.id));
            stream::iter(removals).buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await?;
        }
        let volumes: Volumes =
            self.client.get(&format!("/volumes?{filter}")).await.map_err(|e| e.asking("listing volumes"))?;
        let session = self.session().await?;
        // Podman finds volumes that have one of several labels.
        let ours = |volume: &Volume| {
            let of_volume = |key| volume.labels.as_ref()?.get(key);
            labels.iter().all(|(key, value)| of_volume(*key).is_some_and(|found| found == value))
        };
        for volume in volumes.volumes.into_iter().flatten().filter(ours) {
            let options = RemoveVolumeOptions { force: true };
            match session.docker.remove_volume(&volume.name, Some(options)).await.map_err(Failed::from) {
                Err(error) if !error.is_not_found() => return Err(error.asking("removing a volume")),
                _ => {}
            }
        }
        Ok(())
    }

    /// A container is killed first: some engines wait for a polite end even when they are to remove by force.
    pub(super) async fn kill_and_remove(&self, name: String) -> Result<()> {
        let session = self.session().await?;
        let kill = KillContainerOptions { signal: "SIGKILL".into() };
        // It may not run; what is wrong otherwise, the removal tells.
        let _ = session.docker.kill_container(&name, Some(kill)).await;
        let options = RemoveContainerOptions { force: true, v: true, ..RemoveContainerOptions::default() };
        match session.docker.remove_container(&name, Some(options)).await.map_err(Failed::from) {
            Err(error) if !error.is_not_found() => Err(error.asking("removing a container")),
            _ => Ok(()),
        }
    }

    /// Copies a folder's content, or a file, to a path of a container.
    pub(super) async fn upload(&self, session: &Arc<Session>, name: &str, source: &Path, target: &str) -> Result<()> {
        let (source, is_volume) = (source.to_owned(), target.starts_with("/vnode/volumes/"));
        // What is not a mount of the container has to be made with its folders, from the root on.
        let (path, prefix) = match is_volume {
            true => (target.to_owned(), String::new()),
            false => ("/".to_owned(), target.trim_start_matches('/').to_owned()),
        };
        let packed = tokio::task::spawn_blocking(move || archive::pack(&source, &prefix)).await;
        let packed = packed.map_err(std::io::Error::other).and_then(|r| r);
        let packed: Bytes = packed.map_err(|error| ProviderError::Unavailable {
            message: format!("reading the files of a volume: {error}"),
            retry_after: None,
            source: Some(Box::new(error)),
        })?;
        let options = UploadToContainerOptions { path, ..UploadToContainerOptions::default() };
        let sent = session.docker.upload_to_container(name, Some(options), bollard::body_full(packed)).await;
        sent.map_err(|e| Failed::from(e).doing("CreateContainerError"))
    }
}

/// The address of the interface that leads out of this machine.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // Sends nothing: connecting only asks the kernel for the route. RFC 5737 address.
    socket.connect(("192.0.2.1", 9)).ok()?;
    socket.local_addr().ok().map(|a: SocketAddr| a.ip())
}
