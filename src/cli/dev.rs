//! `vnode dev`: the development cluster, the operator on it as an ordinary client, and a sample fleet.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, discovery};
use serde::Deserialize as _;
use tokio_util::sync::CancellationToken;
use vnode_devcluster::{DevCluster, Options};

use super::operator::NodeArgs;
use crate::api::names;
use crate::cluster::client;
use crate::fleet;
use crate::provider::process;
use crate::telemetry::health::Readiness;

/// First line of every kubeconfig that this command writes; a file without it is somebody else's.
const MARK: &str = "# Written by `vnode dev`, which overwrites it.\n";
/// Where the operator would live on a real cluster.
const NAMESPACE: &str = "vnode-system";
/// The user that the operator is on the development cluster: its ServiceAccount on a real one.
const OPERATOR: &str = "system:serviceaccount:vnode-system:vnode";
const OPERATOR_GROUPS: [&str; 2] = ["system:serviceaccounts", "system:serviceaccounts:vnode-system"];

/// What `config/default` installs, but for the Deployment: here the operator runs in this process.
const INSTALL: [&str; 3] = [
    include_str!("../../config/manager/namespace.yaml"),
    include_str!("../../config/rbac/service_account.yaml"),
    include_str!("../../config/rbac/role.yaml"),
];
const SAMPLE: &str = include_str!("../../config/samples/fleet.yaml");
const PROCESS_SAMPLE: &str = include_str!("../../config/samples/process.yaml");

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
    /// What the sample runs on: a simulated fleet, or one node whose pods are processes of this machine.
    #[arg(long, default_value = "mock", value_name = "TYPE")]
    provider: Sample,
    /// Start no sample fleet.
    #[arg(long)]
    no_sample: bool,
    /// Start the cluster alone, without operator and sample.
    #[arg(long, conflicts_with = "no_sample")]
    cluster_only: bool,
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
}

impl Sample {
    fn manifest(self) -> String {
        match self {
            Self::Mock => SAMPLE.to_owned(),
            // Whoever starts this as root means it.
            Self::Process => PROCESS_SAMPLE
                .replace("allowRoot: false", &format!("allowRoot: {}", rustix::process::geteuid().is_root())),
        }
    }

    fn hints(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Mock => &TRY_SAMPLE,
            Self::Process => &TRY_PROCESS,
        }
    }
}

impl DevArgs {
    /// Whether to log more than warnings.
    pub(super) fn verbose(&self) -> bool {
        self.verbose
    }
}

/// Runs until Ctrl-C or SIGTERM.
pub(super) async fn run(args: DevArgs, shutdown: CancellationToken) -> Result<()> {
    refuse_foreign_file(&args.kubeconfig_out)?;
    let options = Options { listen: args.listen, data_dir: args.data_dir.clone(), ..Options::default() };
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
    install(&admin).await.context("installing vnode into the development cluster")?;
    if args.cluster_only {
        greet(cluster, args, &[]);
        shutdown.cancelled().await;
        return Ok(());
    }

    let operator = client::connect_to(&cluster.kubeconfig(OPERATOR, &OPERATOR_GROUPS)?).await?;
    let mut nodes = args.nodes.clone();
    nodes.node_ip = nodes.node_ip.or(Some(Ipv4Addr::LOCALHOST.into()));
    // Without a folder of its own the cluster ends with this process, and what it runs must end as well.
    let passing = args.data_dir.is_none() && nodes.state_dir.is_none();
    if args.provider == Sample::Process {
        nodes.allow_host_processes = true;
        let kept = args.data_dir.as_ref().map(|dir| dir.join("pods"));
        let temporary = || std::env::temp_dir().join(format!("vnode-dev-{}", std::process::id()));
        let state = nodes.state_dir.take().or(kept).unwrap_or_else(temporary);
        nodes.state_dir = Some(std::path::absolute(state)?);
    }
    nodes.register_providers();
    let config = nodes.config("dev".into(), NAMESPACE.into());
    let readiness = Readiness::new();
    let fleet = fleet::run(operator, config, &readiness, shutdown.clone());
    let sample = async {
        if !args.no_sample {
            apply(&admin, &args.provider.manifest()).await.context("applying the sample fleet")?;
        }
        greet(cluster, args, if args.no_sample { &TRY_EMPTY } else { args.provider.hints() });
        Ok::<_, anyhow::Error>(())
    };
    let (fleet, sample) = tokio::join!(fleet, async {
        let done = sample.await;
        if done.is_err() {
            shutdown.cancel();
        }
        done
    });
    if let (true, Some(state)) = (passing && args.provider == Sample::Process, &nodes.state_dir) {
        process::remove_all(state).await;
    }
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

fn greet(cluster: &DevCluster, args: &DevArgs, hints: &[(&str, &str)]) {
    println!("Kubernetes API  {}", cluster.url());
    println!("kubeconfig      {}", args.kubeconfig_out.display());
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

async fn install(admin: &Client) -> Result<()> {
    for crd in crate::api::crds() {
        apply_object(admin, serde_json::from_value(serde_json::to_value(crd)?)?).await?;
    }
    for manifest in INSTALL {
        apply(admin, manifest).await?;
    }
    let crds = Api::<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition>::all(
        admin.clone(),
    );
    let established = kube::runtime::wait::conditions::is_crd_established();
    let wait = kube::runtime::wait::await_condition(crds, "virtualnodes.vnode.dev", established);
    tokio::time::timeout(std::time::Duration::from_secs(10), wait).await.context("the CRD is not established")??;
    Ok(())
}

async fn apply(admin: &Client, manifest: &str) -> Result<()> {
    for object in serde_saphyr::from_multiple::<serde_json::Value>(manifest)? {
        apply_object(admin, DynamicObject::deserialize(object)?).await?;
    }
    Ok(())
}

/// Server-side apply, as `kubectl apply --server-side` does it: a restart with `--data-dir` changes nothing.
async fn apply_object(admin: &Client, object: DynamicObject) -> Result<()> {
    let types = object.types.clone().context("a manifest without kind")?;
    let gvk = GroupVersionKind::try_from(&types)?;
    let (resource, capabilities) = discovery::pinned_kind(admin, &gvk).await?;
    let name = object.metadata.name.clone().context("a manifest without name")?;
    let api: Api<DynamicObject> = match (&object.metadata.namespace, capabilities.scope) {
        (Some(namespace), discovery::Scope::Namespaced) => Api::namespaced_with(admin.clone(), namespace, &resource),
        _ => Api::all_with(admin.clone(), &resource),
    };
    let params = PatchParams::apply(names::FIELD_MANAGER).force();
    api.patch(&name, &params, &Patch::Apply(&object)).await.with_context(|| format!("{} {name}", types.kind))?;
    Ok(())
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
