//! What probes and hooks ask: commands, HTTP, TCP, gRPC. kubelet: `pkg/probe`, `pkg/kubelet/lifecycle`.
//!
//! | module | what it is |
//! |---|---|
//! | `http` | GET, with redirects and TLS that proves nothing |
//! | `grpc` | `grpc.health.v1.Health/Check` |
//! | `command` | a command in the container, its output kept up to a limit |
//! | `counts` | how they went |

mod command;
mod counts;
mod grpc;
mod http;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::time::timeout;

pub(super) use self::counts::Probed;
use super::engine::{ContainerRef, Engine};
use crate::provider::{Duplex, ProviderError};

/// Output that is shown in an event. kubelet: `maxProbeMessageLength`, `maxReadLength`.
const SHOWN: usize = 10 * 1024;

/// Whom to ask.
#[derive(Clone)]
pub(super) struct Target {
    pub engine: Arc<dyn Engine>,
    pub container: ContainerRef,
    /// For ports by name.
    pub spec: Arc<Container>,
    /// What goes into the Host header: the pod's address.
    pub ip: Option<std::net::IpAddr>,
}

/// What came of it.
pub(super) enum Answer {
    Good,
    /// Why not, for an event.
    Bad(String),
    /// The engine could not be reached: the container is not to blame.
    Unknown,
}

impl Target {
    /// Asks once, within the probe's timeout.
    pub async fn probe(&self, probe: &Probe) -> Answer {
        let seconds = probe.timeout_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(1).max(1);
        let limit = Duration::from_secs(seconds);
        if let Some(exec) = &probe.exec {
            let command = exec.command.clone().unwrap_or_default();
            return match timeout(limit, command::run(&*self.engine, &self.container, &command)).await {
                Ok(Ok((0, _))) => Answer::Good,
                Ok(Ok((_, output))) => Answer::Bad(output),
                Ok(Err(ProviderError::Unavailable { .. })) => Answer::Unknown,
                Ok(Err(error)) => Answer::Bad(error.to_string()),
                Err(_) => Answer::Bad(format!("command timed out: {:?} timed out after {seconds}s", command.join(" "))),
            };
        }
        let asked = async {
            if let Some(get) = &probe.http_get {
                http::get(self, get, "kube-probe").await
            } else if let Some(tcp) = &probe.tcp_socket {
                self.tcp(tcp).await
            } else if let Some(grpc) = &probe.grpc {
                let port = u16::try_from(grpc.port).map_err(|_| format!("invalid port {}", grpc.port))?;
                grpc::check(self, port, grpc.service.as_deref().unwrap_or_default()).await
            } else {
                Err("missing probe handler".into())
            }
        };
        match timeout(limit, asked).await {
            Ok(Ok(())) => Answer::Good,
            Ok(Err(message)) => Answer::Bad(message),
            Err(_) if probe.grpc.is_some() => {
                Answer::Bad(format!("timeout: health rpc did not complete within {seconds}s"))
            }
            Err(_) => Answer::Bad("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".into()),
        }
    }

    /// Runs a hook to its end. The error is for users.
    pub async fn hook(&self, hook: &LifecycleHandler) -> Result<(), String> {
        if let Some(exec) = &hook.exec {
            let command = exec.command.clone().unwrap_or_default();
            return match command::run(&*self.engine, &self.container, &command).await {
                Ok((0, _)) => Ok(()),
                Ok((code, output)) => Err(format!("command '{}' exited with {code}: {output}", command.join(" "))),
                Err(error) => Err(format!("command '{}': {error}", command.join(" "))),
            };
        }
        if let Some(get) = &hook.http_get {
            return http::get(self, get, "kube-lifecycle").await;
        }
        if let Some(tcp) = &hook.tcp_socket {
            return self.tcp(tcp).await;
        }
        if let Some(sleep) = &hook.sleep {
            tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        }
        Ok(())
    }

    async fn tcp(&self, tcp: &TCPSocketAction) -> Result<(), String> {
        let port = self.port(&tcp.port)?;
        self.connect(tcp.host.as_deref(), port).await.map(drop)
    }

    /// A port by number or name.
    fn port(&self, port: &IntOrString) -> Result<u16, String> {
        let number = match port {
            IntOrString::Int(n) => Some(*n),
            IntOrString::String(name) => {
                let named = self.spec.ports.iter().flatten().find(|p| p.name.as_ref() == Some(name));
                named.map(|p| p.container_port).or_else(|| name.parse().ok())
            }
        };
        let valid = number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
        valid.ok_or_else(|| format!("couldn't find port: {port:?}"))
    }

    /// To the pod, or to the host that the probe names.
    async fn connect(&self, host: Option<&str>, port: u16) -> Result<Box<dyn Duplex>, String> {
        match host.filter(|h| !h.is_empty()) {
            Some(host) => match tokio::net::TcpStream::connect((host, port)).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(format!("dial tcp {host}:{port}: connect: {error}")),
            },
            None => self.engine.connect(&self.container.pod, port).await.map_err(|error| {
                let ip = self.ip.map(|ip| ip.to_string()).unwrap_or_default();
                format!("dial tcp {ip}:{port}: {error}")
            }),
        }
    }

    fn http_parts(&self, get: &HTTPGetAction) -> Result<(bool, String, u16, String), String> {
        let tls = get.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"));
        let host = get.host.clone().filter(|h| !h.is_empty());
        let host = host.or_else(|| self.ip.map(|ip| ip.to_string())).unwrap_or_else(|| "localhost".into());
        let path = get.path.clone().unwrap_or_default();
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        Ok((tls, host, self.port(&get.port)?, path))
    }
}

fn shorten(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(SHOWN)]);
    text.into_owned()
}
