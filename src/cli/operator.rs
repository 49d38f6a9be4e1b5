//! `vnode operator`: what the Deployment in `config/` runs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use tokio_util::sync::CancellationToken;

use crate::api::ProviderType;
use crate::cluster::client;
use crate::cluster::identity::NodeIdentity;
use crate::fleet::{self, FleetConfig};
use crate::kubelet::StreamOptions;
use crate::pod::PodWatch;
use crate::provider::process::ProcessFactory;
use crate::provider::registry;
use crate::telemetry::health::{HealthServer, Readiness};
use crate::tls::CertSource;

/// Flags of `vnode operator`. Each has an environment variable, for the Deployment.
#[derive(Debug, Args)]
pub(super) struct OperatorArgs {
    /// The cluster's kubeconfig. Without it: KUBECONFIG, ~/.kube/config, or the pod's own ServiceAccount.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The operator's own namespace. Credentials Secrets are read from here and from nowhere else.
    #[arg(long, env = "POD_NAMESPACE", default_value = "vnode-system", value_name = "NAMESPACE")]
    namespace: String,
    /// This replica's name, shown as the shard of its nodes. The host's name without it.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    identity: Option<String>,
    #[command(flatten)]
    nodes: NodeArgs,
    /// Where metrics and health are served, over plain HTTP: /metrics, /livez, /readyz.
    #[arg(long, env = "VNODE_METRICS_ADDR", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    metrics_addr: SocketAddr,
}

/// Flags that say how nodes are reached; `vnode dev` has them too.
#[derive(Clone, Debug, Args)]
pub(super) struct NodeArgs {
    /// The address that Nodes publish: where the API server reaches this process. Found out without it.
    #[arg(long, env = "POD_IP", value_name = "IP")]
    pub(super) node_ip: Option<IpAddr>,
    /// The address that Nodes publish in place of --node-ip: that of a load balancer, a Service or a NAT in front
    /// of this process.
    #[arg(long, env = "VNODE_ADVERTISE_ADDRESS", value_name = "IP")]
    pub(super) advertise_address: Option<IpAddr>,
    /// The address that the nodes' kubelet APIs listen on. All addresses without it.
    #[arg(long, env = "VNODE_KUBELET_BIND_ADDRESS", value_name = "IP")]
    pub(super) kubelet_bind_address: Option<IpAddr>,
    /// The ports of nodes whose spec names none.
    #[arg(long, env = "VNODE_KUBELET_PORTS", default_value = "20000-29999", value_parser = port_range, value_name = "FIRST-LAST")]
    pub(super) kubelet_ports: RangeInclusive<u16>,
    /// The one port of all nodes with spec.kubelet.mode Shared.
    #[arg(long, env = "VNODE_KUBELET_SHARED_PORT", default_value_t = 10250, value_parser = clap::value_parser!(u16).range(1..), value_name = "PORT")]
    pub(super) kubelet_shared_port: u16,
    /// Where the nodes' serving certificates come from.
    #[arg(long, env = "VNODE_SERVING_CERT", value_enum, default_value_t, value_name = "SOURCE")]
    pub(super) serving_cert: ServingCert,
    /// The Secret in --namespace: with self-signed, where the authority is kept (vnode-kubelet-ca unless named);
    /// with secret, the certificate in tls.crt and tls.key (vnode-kubelet-serving unless named).
    #[arg(long, env = "VNODE_SERVING_CERT_SECRET", value_name = "NAME")]
    pub(super) serving_cert_secret: Option<String>,
    /// With --serving-cert secret, read the certificate from this file in place of a Secret.
    #[arg(long, env = "VNODE_TLS_CERT_FILE", requires = "tls_private_key_file", value_name = "FILE")]
    pub(super) tls_cert_file: Option<PathBuf>,
    /// The key of --tls-cert-file.
    #[arg(long, env = "VNODE_TLS_PRIVATE_KEY_FILE", requires = "tls_cert_file", value_name = "FILE")]
    pub(super) tls_private_key_file: Option<PathBuf>,
    /// In whose name Secrets, ConfigMaps and tokens of pods are read.
    #[arg(long, env = "VNODE_NODE_IDENTITY", value_enum, default_value_t, value_name = "WHO")]
    pub(super) node_identity: Identity,
    /// Run pods of VirtualNodes of type process on this machine. Whoever may create pods on such a node runs
    /// programs here.
    #[arg(long, env = "VNODE_ALLOW_HOST_PROCESSES")]
    pub(super) allow_host_processes: bool,
    /// Let VirtualNodes of type docker use container engines of this machine, by their unix sockets. Whoever may
    /// create pods on such a node can do everything here.
    #[arg(long, env = "VNODE_ALLOW_HOST_ENGINE")]
    pub(super) allow_host_engine: bool,
    /// Let VirtualNodes of type grpc use unix sockets of this machine, whoever listens there.
    #[arg(long, env = "VNODE_ALLOW_HOST_SOCKETS")]
    pub(super) allow_host_sockets: bool,
    /// Where pods of types process, docker and ssh have their files. /var/lib/vnode for root, else ~/.local/state/vnode.
    #[arg(long, env = "VNODE_STATE_DIR", value_name = "FOLDER")]
    pub(super) state_dir: Option<PathBuf>,
    /// How the pods of the nodes are watched.
    #[arg(long, env = "VNODE_POD_WATCH", value_enum, default_value_t, value_name = "HOW")]
    pub(super) pod_watch: PodWatch,
    /// How long a provider may be unreachable before its Node is NotReady, in seconds or as in 20s, 2m.
    #[arg(long, env = "VNODE_PROVIDER_GRACE", default_value = "20s", value_parser = duration, value_name = "TIME")]
    pub(super) provider_grace: Duration,
    /// How long exec, attach and port-forward may carry nothing before they are closed.
    #[arg(long, env = "VNODE_STREAMING_CONNECTION_IDLE_TIMEOUT", default_value = "4h", value_parser = duration, value_name = "TIME")]
    pub(super) streaming_connection_idle_timeout: Duration,
    /// How long a client of exec, attach and port-forward may take to open the streams that belong together.
    #[arg(long, env = "VNODE_STREAMING_CREATION_TIMEOUT", default_value = "30s", value_parser = duration, value_name = "TIME")]
    pub(super) streaming_creation_timeout: Duration,
}

/// Values of `--serving-cert`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ServingCert {
    /// An authority of the operator's own, kept in a Secret.
    #[default]
    SelfSigned,
    /// Each node asks the cluster's signer for its own; somebody has to approve.
    Csr,
    /// A Secret or files that somebody else keeps up to date.
    Secret,
}

/// Values of `--node-identity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Identity {
    /// The operator's own account.
    #[default]
    Operator,
    /// The pod's node: the cluster then gives only what that node's pods refer to.
    Impersonate,
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let wrong = || format!("{text:?} is not a range of ports such as 20000-29999");
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let (first, last): (u16, u16) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
    if first == 0 || first > last { Err(wrong()) } else { Ok(first..=last) }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("{text:?} is not a time such as 20s or 2m")),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is not a time such as 20s or 2m"))?;
    Ok(Duration::from_secs(number.saturating_mul(factor)))
}

impl NodeArgs {
    /// Makes the providers that need to be allowed.
    pub(super) fn register_providers(&self) {
        let host = OfHost {
            processes: self.allow_host_processes,
            engines: self.allow_host_engine,
            sockets: self.allow_host_sockets,
        };
        host.register_providers(&self.state());
    }

    fn state(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(default_state_dir)
    }

    /// True when the operator makes requests in the names of nodes.
    #[cfg(feature = "devcluster")]
    pub(super) fn speaks_for_nodes(&self) -> bool {
        self.node_identity == Identity::Impersonate || self.serving_cert == ServingCert::Csr
    }

    fn cert_source(&self) -> CertSource {
        let secret = |default: &str| self.serving_cert_secret.clone().unwrap_or_else(|| default.to_owned());
        match (self.serving_cert, &self.tls_cert_file, &self.tls_private_key_file) {
            (ServingCert::SelfSigned, ..) => CertSource::SelfSigned { secret: secret("vnode-kubelet-ca") },
            (ServingCert::Csr, ..) => CertSource::Csr,
            (ServingCert::Secret, Some(certificate), Some(key)) => {
                CertSource::Files { certificate: certificate.clone(), key: key.clone() }
            }
            (ServingCert::Secret, ..) => CertSource::Secret { name: secret("vnode-kubelet-serving") },
        }
    }

    /// The fleet's configuration.
    pub(super) fn config(&self, identity: String, namespace: String) -> FleetConfig {
        let node_ip = self.node_ip.unwrap_or_else(own_address);
        // Listening on all addresses would open nodes of a loopback cluster to the network.
        let everywhere: IpAddr = if node_ip.is_ipv6() { [0; 16].into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let bind_address =
            self.kubelet_bind_address.unwrap_or(if node_ip.is_loopback() { node_ip } else { everywhere });
        FleetConfig {
            identity,
            namespace,
            node_ip,
            advertise_address: self.advertise_address,
            bind_address,
            kubelet_ports: self.kubelet_ports.clone(),
            kubelet_shared_port: self.kubelet_shared_port,
            serving_cert: self.cert_source(),
            node_identity: match self.node_identity {
                Identity::Operator => NodeIdentity::Operator,
                Identity::Impersonate => NodeIdentity::Impersonate,
            },
            pod_watch: self.pod_watch,
            provider_grace: self.provider_grace,
            streams: StreamOptions {
                creation_timeout: self.streaming_creation_timeout,
                idle_timeout: self.streaming_connection_idle_timeout,
                ..StreamOptions::default()
            },
            client_ca: None,
        }
    }
}

/// What of this machine providers may use.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "not every build has the providers that ask")]
pub(super) struct OfHost {
    pub(super) processes: bool,
    pub(super) engines: bool,
    pub(super) sockets: bool,
}

impl OfHost {
    /// All of it: for who names a provider on a command line of this machine.
    pub(super) const ALL: Self = Self { processes: true, engines: true, sockets: true };

    /// Makes the providers that have files in `state`, or need to be allowed what they use.
    pub(super) fn register_providers(self, state: &Path) {
        let registry = registry::global();
        if self.processes {
            registry.register(ProviderType::Process.as_str(), ProcessFactory::allowed(state.to_owned(), None));
        }
        #[cfg(feature = "docker")]
        registry.register(
            ProviderType::Docker.as_str(),
            crate::provider::docker::DockerFactory::new(state.to_owned(), self.engines),
        );
        #[cfg(feature = "grpc")]
        registry.register(ProviderType::Grpc.as_str(), crate::provider::grpc::GrpcFactory::new(self.sockets));
        #[cfg(feature = "ssh")]
        registry.register(ProviderType::Ssh.as_str(), crate::provider::ssh::SshFactory::new(state.join("ssh")));
    }
}

pub(super) fn default_state_dir() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    match std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).or_else(home) {
        Some(state) if !rustix::process::geteuid().is_root() => state.join("vnode"),
        _ => "/var/lib/vnode".into(),
    }
}

/// The address of the interface that leads out of this host; loopback when none does.
pub(super) fn own_address() -> IpAddr {
    let probe = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // Sends nothing: connecting a UDP socket only asks the kernel for the route. RFC 5737 address.
        socket.connect(("192.0.2.1", 9))?;
        socket.local_addr()
    };
    probe().map_or(Ipv4Addr::LOCALHOST.into(), |a: SocketAddr| a.ip())
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "vnode".into() } else { name.trim().to_owned() }
}

/// Runs until the shutdown.
pub(super) async fn run(args: OperatorArgs, shutdown: CancellationToken) -> Result<()> {
    let client = client::connect(args.kubeconfig.as_deref()).await?;
    let readiness = Readiness::new();
    let health = HealthServer::bind(args.metrics_addr, readiness.clone())
        .await
        .with_context(|| format!("--metrics-addr: cannot listen on {}", args.metrics_addr))?;
    args.nodes.register_providers();
    let config = args.nodes.config(args.identity.unwrap_or_else(host_name), args.namespace);
    tracing::info!(identity = %config.identity, node_ip = %config.node_ip, "the operator starts");
    let (fleet, ()) =
        tokio::join!(fleet::run(client, config, &readiness, shutdown.clone()), health.run(shutdown.clone()));
    fleet?;
    tracing::info!("the operator has stopped; nodes and pods stay as they are");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_times_are_read_or_refused_with_an_example() {
        assert_eq!(port_range("1-65535"), Ok(1..=65535));
        for wrong in ["", "5", "9-1", "0-5", "a-b", "1-99999"] {
            assert!(port_range(wrong).is_err_and(|e| e.contains("20000-29999")), "{wrong}");
        }
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "s", "2d", "-1"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
