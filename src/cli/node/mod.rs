//! `vnode node`: one node without custom resources, with the flags and variables of Virtual Kubelet.
//!
//! | module | holds |
//! |---|---|
//! | `obsolete` | flags that are taken and mean nothing here, and what to do instead |
//! | `provider` | pure: from `--provider` and its file to `spec.provider` |
//! | `mock_file` | pure: the file of Virtual Kubelet's mock provider |

mod mock_file;
mod obsolete;
pub(super) mod provider;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::operator::{OfHost, default_state_dir, own_address};
use crate::api::virtual_node::{DeletionPolicy, KubeletSpec, PodDeletion};
use crate::api::{VirtualNodeSpec, names};
use crate::cluster::client;
use crate::cluster::identity::NodeIdentity;
use crate::fleet::FleetConfig;
use crate::fleet::alone::{self, OneNode};
use crate::kubelet::StreamOptions;
use crate::pod::PodWatch;
use crate::provider::{Credentials, registry};
use crate::telemetry::health::{HealthServer, Readiness};
use crate::tls::CertSource;

/// A file of credentials is not larger.
const MAX_CREDENTIAL: u64 = 1 << 20;
/// No single request may take longer.
const DEADLINE: Duration = Duration::from_secs(30);

/// Flags of `vnode node`.
#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    /// The cluster's kubeconfig. Without it: KUBECONFIG, ~/.kube/config, or the pod's own ServiceAccount.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The name of the node.
    #[arg(long, env = "DEFAULT_NODE_NAME", default_value = "virtual-kubelet", value_name = "NAME")]
    nodename: String,
    /// What stands behind the node: a type of spec.provider, or a provider that the program brings along.
    #[arg(long, env = "VNODE_PROVIDER", value_name = "TYPE")]
    provider: String,
    /// The provider's configuration: what spec.provider has under the provider's name, as YAML or JSON, or all of
    /// spec.provider. For mock also the file that Virtual Kubelet's mock provider reads.
    #[arg(long, env = "VNODE_PROVIDER_CONFIG", value_name = "FILE")]
    provider_config: Option<PathBuf>,
    /// A folder with what would be in the credentials Secret: one file for each key.
    #[arg(long, env = "VNODE_CREDENTIALS", value_name = "FOLDER")]
    credentials: Option<PathBuf>,
    /// The operating system that the node has.
    #[arg(long, default_value = "linux", value_parser = provider::operating_system, value_name = "OS")]
    os: String,
    /// The key of the node's taint, virtual-kubelet.io/provider without it.
    #[arg(long, env = "VKUBELET_TAINT_KEY", value_name = "KEY")]
    taint: Option<String>,
    /// Its value, the provider's type without it.
    #[arg(long, env = "VKUBELET_TAINT_VALUE", value_name = "VALUE")]
    taint_value: Option<String>,
    /// Its effect: NoSchedule, PreferNoSchedule or NoExecute.
    #[arg(long, env = "VKUBELET_TAINT_EFFECT", default_value = "NoSchedule", value_parser = ["NoSchedule", "PreferNoSchedule", "NoExecute"], value_name = "EFFECT")]
    taint_effect: String,
    /// Give the node no taint.
    #[arg(long)]
    disable_taint: bool,
    /// The address that the Node publishes: where the API server reaches this process. Found out without it.
    #[arg(long, env = "VKUBELET_POD_IP", value_name = "IP")]
    node_ip: Option<IpAddr>,
    /// The port of the kubelet API.
    #[arg(long, env = "KUBELET_PORT", default_value_t = 10250, value_parser = clap::value_parser!(u16).range(1..), value_name = "PORT")]
    kubelet_port: u16,
    /// The address that the kubelet API listens on. All addresses without it.
    #[arg(long, env = "VNODE_KUBELET_BIND_ADDRESS", value_name = "IP")]
    kubelet_bind_address: Option<IpAddr>,
    /// The kubelet API's certificate. Without it, one of an authority of this process's own.
    #[arg(long, env = "APISERVER_CERT_LOCATION", requires = "tls_private_key_file", value_name = "FILE")]
    tls_cert_file: Option<PathBuf>,
    /// The key of --tls-cert-file.
    #[arg(long, env = "APISERVER_KEY_LOCATION", requires = "tls_cert_file", value_name = "FILE")]
    tls_private_key_file: Option<PathBuf>,
    /// The authorities of those who may call the kubelet API with a client certificate. The cluster's own without it.
    #[arg(long, env = "APISERVER_CA_CERT_LOCATION", value_name = "FILE")]
    client_ca_file: Option<PathBuf>,
    /// Where metrics and health are served, over plain HTTP: /metrics, /livez, /readyz.
    #[arg(long, default_value = "127.0.0.1:10255", value_parser = provider::address, value_name = "ADDRESS")]
    metrics_addr: SocketAddr,
    /// How long exec, attach and port-forward may carry nothing before they are closed.
    #[arg(long, default_value = "4h", value_parser = provider::duration, value_name = "TIME")]
    stream_idle_timeout: Duration,
    /// How long a client of exec, attach and port-forward may take to open the streams that belong together.
    #[arg(long, default_value = "30s", value_parser = provider::duration, value_name = "TIME")]
    stream_creation_timeout: Duration,
    /// How long the provider may be unreachable before the Node is NotReady.
    #[arg(long, env = "VNODE_PROVIDER_GRACE", default_value = "20s", value_parser = provider::duration, value_name = "TIME")]
    provider_grace: Duration,
    /// Where pods of types process and docker have their files. /var/lib/vnode for root, else ~/.local/state/vnode.
    #[arg(long, env = "VNODE_STATE_DIR", value_name = "FOLDER")]
    state_dir: Option<PathBuf>,
    /// Take a Node of this name that another program has made, such as Virtual Kubelet, which must have ended.
    #[arg(long)]
    adopt_node: bool,
    /// Delete the node's pods, its Node and its Lease at the end. Without it they stay for the next process.
    #[arg(long)]
    delete_on_exit: bool,
    #[command(flatten)]
    obsolete: obsolete::Obsolete,
}

impl NodeArgs {
    /// What would be in the VirtualNode, and `spec.providerID` if the file says one.
    fn spec(&self) -> Result<(VirtualNodeSpec, Option<String>)> {
        let web = std::env::var("WEB_ENDPOINT_URL").ok().filter(|url| !url.is_empty());
        let file = match &self.provider_config {
            Some(file) => {
                let text = std::fs::read_to_string(file);
                Some(text.with_context(|| format!("--provider-config: {} cannot be read", file.display()))?)
            }
            None => None,
        };
        let asked =
            provider::Asked { kind: &self.provider, node: &self.nodename, file: file.as_deref(), web: web.as_deref() };
        let found = asked.read().context("--provider-config")?;
        registry::global().check(&found.provider).context("--provider")?;
        let key = self.taint.as_deref().filter(|key| !key.is_empty()).unwrap_or(names::PROVIDER_TAINT);
        let taint = Taint {
            key: key.into(),
            value: Some(self.taint_value.clone().unwrap_or_else(|| found.provider.name().to_owned())),
            effect: self.taint_effect.clone(),
            time_added: None,
        };
        // What is left out has the defaults of a VirtualNode.
        let mut spec: VirtualNodeSpec = serde_json::from_value(json!({"provider": found.provider}))?;
        spec.capacity = found.capacity;
        spec.default_taint = false;
        spec.taints = if self.disable_taint { Vec::new() } else { vec![taint] };
        spec.operating_system = Some(self.os.clone());
        spec.kubelet = KubeletSpec { port: Some(self.kubelet_port.into()), ..KubeletSpec::default() };
        // The rights of Virtual Kubelet have no evictions.
        spec.deletion_policy = DeletionPolicy { pods: PodDeletion::Delete, ..DeletionPolicy::default() };
        Ok((spec, found.provider_id))
    }

    fn config(&self, client_ca: Option<String>) -> FleetConfig {
        let node_ip = self.node_ip.unwrap_or_else(own_address);
        let everywhere: IpAddr = if node_ip.is_ipv6() { [0; 16].into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let near = if node_ip.is_loopback() { node_ip } else { everywhere };
        FleetConfig {
            // The Lease's holder is the node's name, as with kubelet.
            identity: self.nodename.clone(),
            // Nothing is read from it: credentials come from a folder.
            namespace: names::LEASE_NAMESPACE.into(),
            node_ip,
            advertise_address: None,
            bind_address: self.kubelet_bind_address.unwrap_or(near),
            kubelet_ports: self.kubelet_port..=self.kubelet_port,
            // No node of mode Shared is here.
            kubelet_shared_port: 0,
            serving_cert: match (&self.tls_cert_file, &self.tls_private_key_file) {
                (Some(certificate), Some(key)) => {
                    CertSource::Files { certificate: certificate.clone(), key: key.clone() }
                }
                _ => CertSource::InMemory,
            },
            node_identity: NodeIdentity::Operator,
            pod_watch: PodWatch::PerNode,
            provider_grace: self.provider_grace,
            streams: StreamOptions {
                creation_timeout: self.stream_creation_timeout,
                idle_timeout: self.stream_idle_timeout,
                ..StreamOptions::default()
            },
            client_ca,
        }
    }
}

/// Runs until the shutdown.
pub(super) async fn run(args: NodeArgs, shutdown: CancellationToken) -> Result<()> {
    for word in args.obsolete.words() {
        tracing::warn!("{word}");
    }
    // Whoever asks for a provider by name on this machine allows it.
    OfHost::ALL.register_providers(&args.state_dir.clone().unwrap_or_else(default_state_dir));
    let (spec, provider_id) = args.spec()?;
    let credentials = args.credentials.as_deref().map(read_credentials).transpose()?.map(Arc::new);
    let client_ca = match &args.client_ca_file {
        Some(file) => Some(
            std::fs::read_to_string(file)
                .with_context(|| format!("--client-ca-file: {} cannot be read", file.display()))?,
        ),
        None => None,
    };
    let client = client::connect(args.kubeconfig.as_deref()).await?;
    let readiness = Readiness::new();
    let health = HealthServer::bind(args.metrics_addr, readiness.clone())
        .await
        .with_context(|| format!("--metrics-addr: cannot listen on {}", args.metrics_addr))?;
    if args.adopt_node {
        adopt(&client, &args.nodename, spec.provider.name()).await?;
    }
    let config = args.config(client_ca);
    let node =
        OneNode { name: args.nodename.clone(), spec, credentials, provider_id, delete_on_exit: args.delete_on_exit };
    tracing::info!(node = node.name, node_ip = %config.node_ip, "the node starts");
    let done = CancellationToken::new();
    let running = async {
        let ran = alone::run_node(client, config, node, &readiness, shutdown).await;
        done.cancel();
        ran
    };
    let (ran, ()) = tokio::join!(running, health.run(done.clone()));
    ran?;
    match args.delete_on_exit {
        true => tracing::info!("the node has stopped"),
        false => tracing::info!("the node has stopped; its Node and its pods stay as they are"),
    }
    Ok(())
}

/// Marks a Node that another program made as ours. One that a VirtualNode stands for is left alone.
async fn adopt(client: &Client, name: &str, provider: &str) -> Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    let found = tokio::time::timeout(DEADLINE, api.get_opt(name)).await.context("looking for the Node")??;
    let Some(node) = found else { return Ok(()) };
    let uid = OneNode::uid(name);
    let owner = node.metadata.annotations.as_ref().and_then(|a| a.get(names::OWNER_UID));
    match owner {
        Some(owner) if *owner == uid => return Ok(()),
        Some(_) => {
            bail!("--adopt-node: Node {name} is that of a VirtualNode; delete the VirtualNode, or choose another name")
        }
        None => {}
    }
    let patch = json!({"metadata": {
        "uid": node.metadata.uid,
        "annotations": {names::OWNER_UID: uid},
        "labels": {names::PROVIDER_LABEL: provider},
    }});
    let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PatchParams::default() };
    let patched = tokio::time::timeout(DEADLINE, api.patch(name, &params, &Patch::Merge(patch))).await;
    patched.context("taking the Node")?.with_context(|| format!("--adopt-node: taking Node {name}"))?;
    tracing::info!(node = name, "the Node that was there is ours now");
    Ok(())
}

/// The files of a folder, as of a mounted Secret. Hidden ones are the mount's own.
pub(super) fn read_credentials(folder: &Path) -> Result<Credentials> {
    let wrong = || format!("--credentials: {} cannot be read", folder.display());
    let mut data = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(folder).with_context(wrong)? {
        let path = entry.with_context(wrong)?.path();
        let Some(key) = path.file_name().and_then(|n| n.to_str()).filter(|n| !n.starts_with('.')) else { continue };
        let meta = std::fs::metadata(&path).with_context(wrong)?;
        if !meta.is_file() {
            continue;
        }
        if meta.len() > MAX_CREDENTIAL {
            bail!("--credentials: {} is larger than a Secret can be", path.display());
        }
        data.insert(key.to_owned(), std::fs::read(&path).with_context(wrong)?.into());
    }
    Ok(Credentials(data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        node: NodeArgs,
    }

    fn parse(words: &str) -> Result<NodeArgs, clap::Error> {
        Cli::try_parse_from(["node"].into_iter().chain(words.split_whitespace())).map(|cli| cli.node)
    }

    #[test]
    fn a_command_line_of_virtual_kubelet_is_understood() {
        let args = parse(
            "--nodename vk --provider mock --os Linux --metrics-addr :10255 --taint example.com/x --pod-sync-workers 20 \
             --enable-node-lease --full-resync-period 1m --klog.v=4 --stream-idle-timeout 1m30s --namespace default",
        )
        .unwrap();
        assert_eq!((args.os.as_str(), args.metrics_addr.to_string().as_str()), ("linux", "0.0.0.0:10255"));
        assert_eq!(args.stream_idle_timeout, Duration::from_secs(90));
        let words = args.obsolete.words();
        assert_eq!(words.len(), 5, "{words:?}");
        assert!(words.iter().any(|w| w.contains("--klog.v") && w.contains("--log-level")), "{words:?}");
        let (spec, _) = args.spec().unwrap();
        let taints: Vec<_> = spec.taints.iter().map(|t| (&*t.key, t.value.as_deref(), &*t.effect)).collect();
        assert_eq!(taints, [("example.com/x", Some("mock"), "NoSchedule")]);
        assert!(!spec.default_taint);
    }

    #[test]
    fn what_is_wrong_with_the_command_line_is_told_with_the_flag() {
        for (words, says) in [
            ("--provider mock --nodenme x", "--nodename"),
            ("--provider mock --os plan9", "linux or windows"),
            ("--provider mock --stream-idle-timeout soon", "30s"),
            ("--nodename x", "--provider"),
        ] {
            let error = parse(words).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let unknown = format!("{:#}", parse("--provider nope").unwrap().spec().unwrap_err());
        assert!(
            unknown.contains("no provider of type \"nope\"; it has: docker") && unknown.contains("mock, process"),
            "{unknown}"
        );
    }

    #[test]
    fn no_taint_is_had_by_asking_for_none() {
        assert!(parse("--provider mock --disable-taint").unwrap().spec().unwrap().0.taints.is_empty());
    }
}
