//! `vnode dev`: the development cluster, the operator on it as an ordinary client, and a sample fleet.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, ResourceExt as _, discovery};
use serde::Deserialize as _;
use tokio_util::sync::CancellationToken;
use vnode_devcluster::{DevCluster, KubeletStreams, Options};

use super::operator::NodeArgs;
use crate::api::names;
use crate::cluster::client;
use crate::fleet;
use crate::provider::{process, registry};
use crate::telemetry::health::{HealthServer, Readiness};

/// First line of every kubeconfig that this command writes; a file without it is somebody else's.
const MARK: &str = "# Written by `vnode dev`, which overwrites it.\n";
/// Where the operator would live on a real cluster.
const NAMESPACE: &str = "vnode-system";
/// The user that the operator is on the development cluster: its ServiceAccount on a real one.
const OPERATOR: &str = "system:serviceaccount:vnode-system:vnode";
const OPERATOR_GROUPS: [&str; 2] = ["system:serviceaccounts", "system:serviceaccounts:vnode-system"];

/// What `config/default` installs, but for the Deployment: here the operator runs in this process.
const INSTALL: [&str; 4] = [
    include_str!("../../config/manager/namespace.yaml"),
    include_str!("../../config/rbac/service_account.yaml"),
    include_str!("../../config/rbac/role.yaml"),
    include_str!("../../config/rbac/serving.yaml"),
];
/// What it needs beside that to speak in the names of nodes.
const IMPERSONATE: [&str; 3] = [
    include_str!("../../config/impersonate/role.yaml"),
    include_str!("../../config/csr/role.yaml"),
    include_str!("../../config/impersonate/legacy.yaml"),
];
const CRD_NAME: &str = "virtualnodes.vnode.dev";
const SAMPLE: &str = include_str!("../../config/samples/fleet.yaml");
const PROCESS_SAMPLE: &str = include_str!("../../config/samples/process.yaml");
#[cfg(feature = "docker")]
const DOCKER_SAMPLE: &str = include_str!("../../config/samples/docker.yaml");

/// Flags of `vnode dev`.
#[derive(Debug, Args)]
pub(super) struct DevArgs {
    /// Where the API server listens. Port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:6443", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where to write the kubeconfig. A file that `vnode dev` did not write is not overwritten.
    #[arg(long, default_value = "vnode-dev.kubeconfig", value_name = "FILE")]
    kubeconfig_out: PathBuf,
    /// Keep the cluster's state in this folder, so that it survives restarts. In memory without it.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// What the sample runs on: a simulated fleet, one node whose pods are processes of this machine, or one whose
    /// pods are containers of the engine at DOCKER_HOST (unix:///var/run/docker.sock without it).
    #[arg(long, default_value = "mock", value_name = "TYPE")]
    provider: Sample,
    /// Where the fleet page, metrics and health are served to this machine. Port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    metrics_addr: SocketAddr,
    /// Start no sample fleet.
    #[arg(long)]
    no_sample: bool,
    /// Start the cluster alone, without operator and sample.
    #[arg(long, conflicts_with = "no_sample")]
    cluster_only: bool,
    /// Serve `/debug/faults`, where administrators ask for errors, delays and outages. What is left to chance follows
    /// from the seed.
    #[arg(long, value_name = "SEED", num_args = 0..=1, require_equals = true, default_missing_value = "0")]
    faults: Option<u64>,
    /// What exec, attach and port-forward of WebSocket clients speak to nodes.
    #[arg(long, value_enum, default_value_t, hide = true, value_name = "PROTOCOL")]
    kubelet_streams: Streams,
    /// Log what the cluster and the operator do, not only what goes wrong.
    #[arg(long, short)]
    verbose: bool,
    #[command(flatten)]
    nodes: NodeArgs,
}

/// The samples that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Sample {
    Mock,
    Process,
    #[cfg(feature = "docker")]
    Docker,
}

/// The engine's socket as other programs are told of it.
#[cfg(feature = "docker")]
fn docker_host() -> Option<String> {
    std::env::var("DOCKER_HOST").ok().filter(|h| !h.is_empty())
}

impl Sample {
    fn manifest(self) -> String {
        match self {
            Self::Mock => SAMPLE.to_owned(),
            // Whoever starts this as root means it.
            Self::Process => PROCESS_SAMPLE
                .replace("allowRoot: false", &format!("allowRoot: {}", rustix::process::geteuid().is_root())),
            #[cfg(feature = "docker")]
            Self::Docker => match docker_host() {
                Some(host) => DOCKER_SAMPLE.replace("unix:///var/run/docker.sock", &host),
                None => DOCKER_SAMPLE.to_owned(),
            },
        }
    }

    fn hints(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Mock => &TRY_SAMPLE,
            Self::Process => &TRY_PROCESS,
            #[cfg(feature = "docker")]
            Self::Docker => &TRY_DOCKER,
        }
    }
}

/// Values of `--kubelet-streams`.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Streams {
    /// As each node declares.
    #[default]
    Declared,
    /// SPDY/3.1, as Kubernetes did up to 1.35.
    Spdy,
    /// WebSocket.
    Websocket,
}

impl From<Streams> for KubeletStreams {
    fn from(streams: Streams) -> Self {
        match streams {
            Streams::Declared => Self::Declared,
            Streams::Spdy => Self::Spdy,
            Streams::Websocket => Self::WebSocket,
        }
    }
}

impl DevArgs {
    /// Whether to log more than warnings.
    pub(super) fn verbose(&self) -> bool {
        self.verbose
    }

    /// What must end with the cluster: without a folder of its own it is gone with this process.
    pub(super) fn passing(&self) -> Option<Passing> {
        let passing = self.data_dir.is_none() && self.nodes.state_dir.is_none();
        passing.then(|| Passing { sample: self.provider, state: self.state_dir() })
    }

    /// Where providers that run real programs keep what they must know after a restart.
    fn state_dir(&self) -> PathBuf {
        let kept = self.nodes.state_dir.clone().or_else(|| Some(self.data_dir.as_ref()?.join("pods")));
        kept.unwrap_or_else(|| std::env::temp_dir().join(format!("vnode-dev-{}", std::process::id())))
    }
}

/// What pods of a development cluster run on, when they must end with it.
pub(super) struct Passing {
    sample: Sample,
    state: PathBuf,
}

impl Passing {
    /// Ends and removes all of it. Called when nothing of the cluster's runs any more that would start it again.
    pub(super) async fn remove(self) {
        match self.sample {
            Sample::Mock => {}
            Sample::Process => process::remove_all(&self.state).await,
            #[cfg(feature = "docker")]
            Sample::Docker => crate::provider::docker::remove_all(&self.state, docker_host().as_deref()).await,
        }
    }
}

/// Runs until Ctrl-C or SIGTERM.
pub(super) async fn run(args: DevArgs, shutdown: CancellationToken) -> Result<()> {
    refuse_foreign_file(&args.kubeconfig_out)?;
    let options = Options {
        listen: args.listen,
        data_dir: args.data_dir.clone(),
        faults: args.faults,
        kubelet_streams: args.kubelet_streams.into(),
        ..Options::default()
    };
    let cluster = DevCluster::start(options).await.with_context(|| {
        format!("the development cluster cannot start on {} (--listen chooses another address)", args.listen)
    })?;
    let ran = run_on(&cluster, &args, shutdown).await;
    cluster.shutdown().await;
    if args.data_dir.is_none() {
        // The cluster that it names exists no longer.
        let _ = std::fs::remove_file(&args.kubeconfig_out);
    }
    ran
}

async fn run_on(cluster: &DevCluster, args: &DevArgs, shutdown: CancellationToken) -> Result<()> {
    let admin = cluster.admin_kubeconfig()?;
    write_kubeconfig(&args.kubeconfig_out, &admin)?;
    let admin = client::connect_to(&admin).await?;
    let fresh = install(&admin, &args.nodes).await.context("installing vnode into the development cluster")?;
    if args.cluster_only {
        greet(cluster, args, None, &[]);
        shutdown.cancelled().await;
        return Ok(());
    }

    let operator = client::connect_to(&cluster.kubeconfig(OPERATOR, &OPERATOR_GROUPS)?).await?;
    let mut nodes = args.nodes.clone();
    nodes.node_ip = nodes.node_ip.or(Some(Ipv4Addr::LOCALHOST.into()));
    if args.provider != Sample::Mock {
        nodes.allow_host_processes |= args.provider == Sample::Process;
        nodes.allow_host_engine |= args.provider != Sample::Process;
        nodes.state_dir = Some(std::path::absolute(args.state_dir())?);
    }
    nodes.register_providers();
    let config = nodes.config("dev".into(), NAMESPACE.into());
    let readiness = Readiness::new();
    let health = HealthServer::bind(args.metrics_addr, readiness.clone())
        .await
        .with_context(|| format!("--metrics-addr: cannot listen on {}", args.metrics_addr))?
        .open_on_loopback();
    let page = format!("http://{}/fleet", health.local_addr()?);
    let fleet = fleet::run(operator, config, &readiness, shutdown.clone());
    let sample = async {
        // A cluster that was kept keeps what its user made of the sample.
        if fresh && !args.no_sample {
            create(&admin, &args.provider.manifest()).await.context("creating the sample fleet")?;
        }
        greet(cluster, args, Some(&page), if args.no_sample { &TRY_EMPTY } else { args.provider.hints() });
        Ok::<_, anyhow::Error>(())
    };
    let sample = async {
        let done = sample.await;
        if done.is_err() {
            shutdown.cancel();
        }
        done
    };
    let (fleet, sample, ()) = tokio::join!(fleet, sample, health.run(shutdown.clone()));
    sample?;
    Ok(fleet?)
}

const TRY_PROCESS: [(&str, &str); 5] = [
    ("kubectl get nodes,pods -o wide", "the node, and the pods on it"),
    ("kubectl logs -f deploy/hello", "what a process writes"),
    ("kubectl exec -it deploy/hello -- sh", "a shell beside it"),
    ("kubectl edit configmap greeting", "seen by the pod within a minute"),
    ("kubectl run crash --image=host -- sh -c 'exit 1'", "watch it back off: kubectl get pods -w"),
];

#[cfg(feature = "docker")]
const TRY_DOCKER: [(&str, &str); 5] = [
    ("kubectl get nodes,pods -o wide", "the node, and the pods on it"),
    ("kubectl logs -f deploy/hello", "what a container writes"),
    ("kubectl exec -it deploy/hello -- sh", "a shell in it"),
    ("kubectl edit configmap greeting", "seen by the pod within a minute"),
    ("kubectl run crash --image=busybox -- sh -c 'exit 1'", "watch it back off: kubectl get pods -w"),
];

const TRY_SAMPLE: [(&str, &str); 4] = [
    ("kubectl get virtualnodes", "the sample fleet"),
    ("kubectl get nodes,pods -o wide", "its Nodes, and the pods on them"),
    ("kubectl logs -f deploy/hello", "what a simulated pod writes"),
    ("kubectl explain virtualnode.spec", "what can be set"),
];
const TRY_EMPTY: [(&str, &str); 3] = [
    ("kubectl explain virtualnode.spec", "what can be set"),
    ("kubectl apply -f config/samples/fleet.yaml", "a sample fleet"),
    ("kubectl get virtualnodes", "what has become of it"),
];

fn greet(cluster: &DevCluster, args: &DevArgs, page: Option<&str>, hints: &[(&str, &str)]) {
    println!("Kubernetes API  {}", cluster.url());
    println!("kubeconfig      {}", args.kubeconfig_out.display());
    if let Some(page) = page {
        println!("fleet page      {page}");
    }
    if !hints.is_empty() {
        println!("\nIn another terminal:\n\n  export KUBECONFIG={}", shown(&args.kubeconfig_out));
        for (command, what) in hints {
            println!("  {command:<44} # {what}");
        }
    }
    println!("\nCtrl-C stops it{}.", if args.data_dir.is_some() { "; its state is kept" } else { "" });
}

/// The path as another terminal can use it.
fn shown(file: &Path) -> String {
    std::path::absolute(file).map_or_else(|_| file.display().to_string(), |p| p.display().to_string())
}

/// Whether this is the cluster's first start.
async fn install(admin: &Client, nodes: &NodeArgs) -> Result<bool> {
    let crds = Api::<CustomResourceDefinition>::all(admin.clone());
    let fresh = crds.get_opt(CRD_NAME).await?.is_none();
    for crd in crate::api::crds_with(&registry::global().members()) {
        apply_object(admin, serde_json::from_value(serde_json::to_value(crd)?)?).await?;
    }
    for manifest in INSTALL {
        apply(admin, manifest).await?;
    }
    if nodes.speaks_for_nodes() {
        for manifest in IMPERSONATE {
            apply(admin, manifest).await?;
        }
    }
    let established = kube::runtime::wait::conditions::is_crd_established();
    let wait = kube::runtime::wait::await_condition(crds, CRD_NAME, established);
    tokio::time::timeout(std::time::Duration::from_secs(10), wait).await.context("the CRD is not established")??;
    Ok(fresh)
}

async fn apply(admin: &Client, manifest: &str) -> Result<()> {
    for object in serde_saphyr::from_multiple::<serde_json::Value>(manifest)? {
        apply_object(admin, DynamicObject::deserialize(object)?).await?;
    }
    Ok(())
}

/// Creates as `kubectl apply` does, so that a later `kubectl apply` of the same objects is at home.
async fn create(admin: &Client, manifest: &str) -> Result<()> {
    const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
    const MANAGER: &str = "kubectl-client-side-apply";
    for object in serde_saphyr::from_multiple::<serde_json::Value>(manifest)? {
        let applied = format!("{object}\n");
        let mut object = DynamicObject::deserialize(object)?;
        object.metadata.annotations.get_or_insert_default().insert(LAST_APPLIED.into(), applied);
        let (api, name) = api_of(admin, &object).await?;
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        api.create(&params, &object).await.with_context(|| name)?;
    }
    Ok(())
}

/// Server-side apply, as `kubectl apply --server-side` does it: a restart with `--data-dir` changes nothing.
async fn apply_object(admin: &Client, object: DynamicObject) -> Result<()> {
    let (api, name) = api_of(admin, &object).await?;
    let params = PatchParams::apply(names::FIELD_MANAGER).force();
    let patched = api.patch(&object.name_any(), &params, &Patch::Apply(&object)).await;
    patched.with_context(|| name)?;
    Ok(())
}

/// Where an object of a manifest belongs, and how errors name it.
async fn api_of(admin: &Client, object: &DynamicObject) -> Result<(Api<DynamicObject>, String)> {
    let types = object.types.clone().context("a manifest without kind")?;
    let gvk = GroupVersionKind::try_from(&types)?;
    let (resource, capabilities) = discovery::pinned_kind(admin, &gvk).await?;
    let name = object.metadata.name.as_deref().context("a manifest without name")?;
    let namespace = object.metadata.namespace.as_deref().unwrap_or("default");
    let api = match capabilities.scope {
        discovery::Scope::Namespaced => Api::namespaced_with(admin.clone(), namespace, &resource),
        discovery::Scope::Cluster => Api::all_with(admin.clone(), &resource),
    };
    Ok((api, format!("{} {name}", types.kind)))
}

fn refuse_foreign_file(file: &Path) -> Result<()> {
    match std::fs::read_to_string(file) {
        Ok(text) if text.starts_with(MARK) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Ok(_) => bail!(
            "{} was not written by vnode dev and is left alone; choose another file with --kubeconfig-out",
            file.display()
        ),
        Err(error) => bail!("{} cannot be read: {error}; choose another file with --kubeconfig-out", file.display()),
    }
}

/// Writes the file for its owner alone: it holds the administrator's key.
fn write_kubeconfig(file: &Path, kubeconfig: &str) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let folder = file.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        std::fs::create_dir_all(folder)?;
        // A reader never sees half of it.
        let part = file.with_extension("part");
        let mut options = std::fs::OpenOptions::new();
        let mut open = options.write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        open.write_all(format!("{MARK}{kubeconfig}\n").as_bytes())?;
        std::fs::rename(&part, file)
    };
    write().with_context(|| format!("--kubeconfig-out: cannot write {}", file.display()))
}
