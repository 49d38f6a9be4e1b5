//! The engine of the runtime loop, by scripts.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio::sync::broadcast;
use tokio::time::{Instant, timeout};

use super::device::{Device, Failed, Said, guard};
use super::forward::Forward;
use super::script::{self, refuse};
use super::settings::Settings;
use super::{events, exec, found, logs, machine};
use crate::provider::runtime::{
    ContainerRef, ContainerSpec, ContainerState, ContainerUse, Engine, EngineEvent, EngineUsage, Image, Listing, Mount,
    PullRequest, Sandbox, SandboxSpec, Signal, files,
};
use crate::provider::{
    Capabilities, Duplex, ExitStatus, LogOptions, LogStream, NodeDescription, PodFeature, PodFeatures, PodRef,
    ProviderError, ResolvedVolume, Result, SessionIo, Usage,
};

/// Ends that a slow reader may lag behind before it has to look anew.
const EVENTS: usize = 256;
const DIAL: Duration = Duration::from_secs(10);

/// What of pods a device can do, with or without hostPath volumes.
pub(super) fn capabilities(host_paths: bool) -> Capabilities {
    const OWN: PodFeatures =
        PodFeatures::of(&[PodFeature::HostNetwork, PodFeature::HostPid, PodFeature::HostIpc, PodFeature::HostPorts]);
    let host_paths = if host_paths { &[PodFeature::HostPath][..] } else { &[] };
    Capabilities::serving_all(OWN.and(PodFeatures::of(host_paths)))
}

pub(super) struct SshEngine {
    device: Arc<Device>,
    /// Ends that were seen by whoever looked.
    told: broadcast::Sender<EngineEvent>,
    /// The versions of volumes that the device has, by the pod's uid and the volume's name.
    shown: Mutex<HashMap<(Arc<str>, String), String>>,
    /// Processor time at the last look, by container id.
    samples: Mutex<HashMap<String, (Instant, u64)>>,
}

fn id(container: &ContainerRef) -> String {
    let name = format!("{}/{}/{}", container.pod.uid, container.name, container.attempt);
    Sha256::digest(name.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    // Fails only when the runtime shuts down or the work panicked; both say nothing of the pod.
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ProviderError::unavailable("the node is being let go")))
}

impl SshEngine {
    pub fn new(settings: Settings) -> Self {
        Self {
            device: Device::new(settings),
            told: broadcast::Sender::new(EVENTS),
            shown: Mutex::default(),
            samples: Mutex::default(),
        }
    }

    fn settings(&self) -> &Settings {
        &self.device.settings
    }

    /// A script that changes something in a pod, on the device that is ours.
    async fn change(&self, body: &str) -> Result<Said> {
        self.try_to(body).await?.map_err(Failed::step)
    }

    async fn try_to(&self, body: &str) -> Result<Result<Said, Failed>> {
        let own = script::own(self.settings())?;
        Ok(self.device.run(&format!("{own}{body}")).await)
    }

    async fn ask(&self, body: &str) -> Result<Said> {
        let look = script::look(self.settings())?;
        self.device.run(&format!("{look}{body}")).await.map_err(Failed::asking)
    }

    /// The scripts that bring the files of volumes up to date, with the versions that they show.
    async fn put(&self, pod: &PodRef, volumes: Vec<(String, PathBuf)>) -> Result<(String, Vec<(String, String)>)> {
        let (of, known) = (pod.clone(), guard(&self.shown).clone());
        blocking(move || {
            let (mut text, mut put) = (String::new(), Vec::new());
            for (name, dir) in volumes {
                let version = script::version(&dir).map_err(|e| files::failed("reading", &dir, e))?;
                let Some(version) = version else { continue };
                if known.get(&(of.uid.clone(), name.clone())) != Some(&version.name) {
                    text += &script::put_volume(&of, &name, &version)?;
                    put.push((name, version.name));
                }
            }
            Ok((text, put))
        })
        .await
    }

    fn note(&self, pod: &PodRef, put: Vec<(String, String)>) {
        guard(&self.shown).extend(put.into_iter().map(|(name, version)| ((pod.uid.clone(), name), version)));
    }

    fn forget(&self, pod: &PodRef) {
        guard(&self.shown).retain(|(uid, _), _| *uid != pod.uid);
    }

    /// The device's address: as it sees it itself, else as we do.
    async fn ip(&self, said: &Said) -> IpAddr {
        let peer = match said.ip {
            Some(ip) => Some(ip),
            None => self.device.control().await.ok().and_then(|l| l.peer),
        };
        peer.unwrap_or(Ipv4Addr::LOCALHOST.into())
    }

    fn tell(&self, found: found::Found) {
        // Fails when nobody listens; who comes later lists first.
        let _ = self.told.send(EngineEvent::Container { container: found.container, state: found.state });
    }
}

#[async_trait]
impl Engine for SshEngine {
    fn scheme(&self) -> &'static str {
        "ssh"
    }

    fn capabilities(&self) -> Capabilities {
        capabilities(!self.settings().host_paths.is_empty())
    }

    async fn ping(&self) -> Result<()> {
        self.device.tidy();
        let own = script::own(self.settings())?;
        // What it lacks is told first: without mkdir, nothing can be owned.
        let body = format!(
            "VN_T=$(vn_missing)\n[ -z \"$VN_T\" ] || vn_refuse \"the device has no $VN_T\"\n{own}\
             printf x > \"$VN_NODE/ping\" || exit 1"
        );
        self.device.run(&body).await.map(drop).map_err(Failed::asking)
    }

    async fn describe_node(&self) -> Result<NodeDescription> {
        Ok(machine::describe(&self.ask("vn_describe").await?.text))
    }

    async fn list(&self) -> Result<Listing> {
        let said = self.ask("vn_list\necho VNODE-END").await?;
        if !said.text.trim_end().ends_with("VNODE-END") {
            return Err(ProviderError::unavailable("the device told only in part what it has"));
        }
        Ok(found::listing(&said.text, self.ip(&said).await, id))
    }

    fn events(&self) -> BoxStream<'static, EngineEvent> {
        events::events(self.device.clone(), self.told.subscribe())
    }

    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox> {
        // The device may have been made anew since.
        self.forget(&spec.pod);
        let mut text = script::sandbox(self.settings(), &spec.pod, spec.resolved.volumes.iter())?;
        let files = spec.resolved.volumes.iter().filter(|(_, v)| matches!(v, ResolvedVolume::Files(_)));
        let files = files.map(|(name, _)| (name.clone(), spec.dir.join("volumes").join(name))).collect();
        let (more, put) = self.put(&spec.pod, files).await?;
        text += &more;
        let said = self.change(&text).await?;
        self.note(&spec.pod, put);
        Ok(Sandbox { ips: vec![self.ip(&said).await] })
    }

    async fn remove_sandbox(&self, pod: &PodRef) -> Result<()> {
        self.forget(pod);
        let uid = script::place(&ContainerRef { pod: pod.clone(), name: "x".into(), attempt: 0, id: String::new() })
            .map(|_| pod.uid.clone())?;
        self.change(&format!("vn_remove_pod {uid} || exit 1")).await.map(drop)
    }

    async fn image(&self, image: &str) -> Result<Option<Image>> {
        Ok(Some(Image { id: image.to_owned(), size: None }))
    }

    async fn pull(&self, request: &PullRequest) -> Result<Image> {
        Ok(Image { id: request.image.clone(), size: None })
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<String> {
        let command: Vec<String> = spec.command.iter().chain(&spec.args).cloned().collect();
        if command.is_empty() {
            return Err(refuse("a command must be given: this node runs processes, not images".into()));
        }
        let generated = spec.mounts.iter().filter(|m| m.generated).map(|m| (m.volume.clone(), m.source.clone()));
        let (mut text, put) = self.put(&spec.container.pod, generated.collect()).await?;
        let non_root = spec.security.run_as_non_root.or(spec.pod_security.run_as_non_root) == Some(true);
        if non_root {
            text += "[ \"$(id -u)\" != 0 ] || vn_refuse 'container has runAsNonRoot and would run as root'\n";
        }
        if let Some(user) = spec.run_as_user {
            text += &format!(
                "[ \"$(id -u)\" = {user} ] || vn_refuse \"runAsUser {user} is not possible: this node logs in as user \
                 $(id -u)\"\n"
            );
        }
        let (settings, of) = (self.settings().clone(), spec.clone());
        text += &blocking(move || script::create(&settings, &of, &command)).await?;
        let pod = &spec.container.pod;
        let said = self.try_to(&text).await?.map_err(Failed::making)?;
        if said.text.contains(script::NO_POD) {
            // Somebody has cleared the device. Fails when nobody listens; who comes later lists first.
            let _ = self.told.send(EngineEvent::Sandbox { pod: pod.clone(), sandbox: None });
            return Err(ProviderError::unavailable(format!("the folder of pod {pod} is not on the device any more")));
        }
        self.note(pod, put);
        Ok(id(&spec.container))
    }

    async fn start(&self, container: &ContainerRef) -> Result<Timestamp> {
        let place = script::place(container)?;
        let said =
            self.change(&format!("[ -e \"$VN_NODE\"/{place}/meta ] || echo G\nvn_start \"$VN_NODE\"/{place}")).await?;
        let found = said.text.lines().find_map(found::container);
        if let Some(why) = said.text.lines().find_map(|l| l.strip_prefix("F ")) {
            // The word for a container that was made and did not start.
            return Err(ProviderError::Rejected { reason: String::new(), message: why.to_owned() });
        }
        if said.text.lines().any(|l| l == "G") {
            return Err(ProviderError::NotFound(container.to_string()));
        }
        match found.as_ref().map(|f| &f.state) {
            Some(ContainerState::Running { started_at }) => Ok(*started_at),
            Some(ContainerState::Exited(exit)) => {
                let started = exit.started_at.unwrap_or_else(Timestamp::now);
                if let Some(found) = found {
                    self.tell(found);
                }
                Ok(started)
            }
            _ => Err(ProviderError::unavailable(format!("{container} has not begun yet"))),
        }
    }

    async fn signal(&self, container: &ContainerRef, signal: &Signal) -> Result<()> {
        let Some(number) = signal.number() else {
            return Err(ProviderError::Rejected {
                reason: String::new(),
                message: format!("there is no signal {:?}", signal.0),
            });
        };
        let place = script::place(container)?;
        self.change(&format!("vn_signal \"$VN_NODE\"/{place} {number}")).await.map(drop)
    }

    async fn remove(&self, container: &ContainerRef) -> Result<()> {
        guard(&self.samples).remove(&container.id);
        let place = script::place(container)?;
        self.change(&format!("vn_remove \"$VN_NODE\"/{place} || exit 1")).await.map(drop)
    }

    async fn refresh(&self, container: &ContainerRef, mount: &Mount) -> Result<()> {
        let pod = &container.pod;
        let (text, put) = self.put(pod, vec![(mount.volume.clone(), mount.source.clone())]).await?;
        if text.is_empty() {
            return Ok(());
        }
        self.change(&text).await?;
        self.note(pod, put);
        Ok(())
    }

    async fn termination_message(&self, container: &ContainerRef, _file: &Path) -> Result<Bytes> {
        let place = script::place(container)?;
        let limit = files::MESSAGE_LIMIT;
        let file = format!("\"$VN_NODE\"/{place}/termination-log");
        // It is as long as its writer made it.
        let body = format!("[ -e {file} ] || exit 0\ndd if={file} bs={limit} count=1 2>/dev/null");
        let mut text = self.ask(&body).await?.text;
        let end = usize::try_from(limit).unwrap_or(usize::MAX).min(text.len());
        let end = (0..=end).rev().find(|n| text.is_char_boundary(*n)).unwrap_or_default();
        text.truncate(end);
        Ok(Bytes::from(text))
    }

    async fn logs(&self, container: &ContainerRef, options: &LogOptions) -> Result<LogStream> {
        logs::open(&self.device, container, options).await
    }

    async fn exec(&self, container: &ContainerRef, command: &[String], io: SessionIo) -> Result<ExitStatus> {
        exec::run(&self.device, container, command, io).await
    }

    async fn attach(&self, container: &ContainerRef, io: SessionIo) -> Result<ExitStatus> {
        exec::attach(&self.device, container, io).await
    }

    async fn connect(&self, pod: &PodRef, port: u16) -> Result<Box<dyn Duplex>> {
        // All pods share the device's network, so a port is the pod's when one of its processes listens on it.
        let uid = script::place(&ContainerRef { pod: pod.clone(), name: "x".into(), attempt: 0, id: String::new() })
            .map(|_| pod.uid.clone())?;
        let body = format!(
            "vn_greps\nVN_ALL=\nfor VN_C in \"$VN_NODE\"/pods/{uid}/containers/*/*/; do\nvn_state \"${{VN_C%/}}\"\n\
             [ \"$VN_IS\" = running ] || continue\n\
             VN_ALL=\"$VN_ALL $(vn_processes \"${{VN_C%/}}\" \"${{VN_MAIN%% *}}\")\"\ndone\nvn_sockets $VN_ALL"
        );
        let said = self.ask(&body).await?;
        if !machine::listens(&said.text, port) {
            return Err(ProviderError::NotFound(format!("a process of the pod that listens on port {port}")));
        }
        let own = self.ip(&said).await.to_string();
        let mut lease = self.device.lease().await?;
        let mut last = String::new();
        for host in ["127.0.0.1", "::1", own.as_str()] {
            let open = lease.link()?.handle.channel_open_direct_tcpip(host, u32::from(port), "127.0.0.1", 0);
            match timeout(DIAL, open).await {
                Ok(Ok(channel)) => {
                    lease.keep();
                    return Ok(Box::new(Forward::new(channel.into_stream(), lease)));
                }
                Ok(Err(russh::Error::ChannelOpenFailure(russh::ChannelOpenFailure::AdministrativelyProhibited))) => {
                    lease.keep();
                    return Err(ProviderError::Rejected {
                        reason: "Forbidden".into(),
                        message: "the device's SSH server forbids it: AllowTcpForwarding must be yes or local".into(),
                    });
                }
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => last = "no answer".into(),
            }
        }
        Err(ProviderError::unavailable(format!("connecting to port {port} of the device: {last}")))
    }

    async fn stats(&self) -> Result<EngineUsage> {
        let said = self.ask("vn_table\nvn_list\nvn_machine").await?;
        let table = machine::Table::read(&said.text);
        let (now, time) = (Instant::now(), Timestamp::now());
        let (network, filesystem) = machine::usage(&said.text, time);
        let mut usage = EngineUsage { network, filesystem, ..EngineUsage::default() };
        let mut samples = guard(&self.samples);
        for found in said.text.lines().filter_map(found::container) {
            let (ContainerState::Running { .. }, Some(pid)) = (&found.state, found.pid) else { continue };
            let Some((ticks, pages)) = table.usage(pid) else { continue };
            let last = samples.insert(id(&found.container), (now, ticks));
            let cores = last.filter(|(at, _)| now > *at).map(|(at, before)| {
                let used = ticks.saturating_sub(before) as f64 / machine::TICKS as f64;
                (used / (now - at).as_secs_f64() * 1e9) as u64
            });
            let used = Usage {
                time,
                cpu_nanos: Some(ticks.saturating_mul(1_000_000_000 / machine::TICKS)),
                cpu_nano_cores: cores,
                memory_working_set: Some(pages * table.page),
            };
            usage.containers.push(ContainerUse { container: found.container, usage: used, logs: None });
        }
        Ok(usage)
    }
}
