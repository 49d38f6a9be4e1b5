//! What a fleet costs: `cargo bench --bench fleet -- [--nodes 100,1000] [--pods-per-node 10] [--json FILE] …`; `--help`
//! has the rest.
//!
//! The cluster and the operators are processes of their own, so that each one's memory and processor time can be told
//! apart. With `VNODE_E2E_KUBECONFIG` the cluster is the one that the file names. Prints one table, with a column for
//! each size: what grows with the fleet grows in proportion, or it shows.

#[path = "common.rs"]
mod common;
#[path = "fleet/report.rs"]
mod report;
#[path = "fleet/scenarios.rs"]
mod scenarios;
#[path = "fleet/soak.rs"]
mod soak;
#[path = "fleet/watch.rs"]
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use common::{Process, Result, free_address, start_cluster, start_operator};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client, Config};
use report::Report;
use vnode::api::VirtualNode;

/// What a fleet costs.
#[derive(Parser)]
struct Options {
    /// How many VirtualNodes; several sizes are measured one after the other.
    #[arg(long, value_delimiter = ',', default_value = "1000")]
    nodes: Vec<usize>,
    #[arg(long, default_value_t = 10)]
    pods_per_node: usize,
    /// Pods a second where they come at a steady rate.
    #[arg(long, default_value_t = 100)]
    rate: usize,
    /// For how many seconds they do.
    #[arg(long, default_value_t = 10)]
    seconds: usize,
    /// How long the simulated provider takes to start a pod, in milliseconds.
    #[arg(long, default_value_t = 0)]
    provider_latency: u64,
    /// For how long nothing happens, in seconds.
    #[arg(long, default_value = "60", value_parser = |s: &str| s.parse().map(Duration::from_secs))]
    idle: Duration,
    /// Operators that share the fleet; of several, one is killed.
    #[arg(long, default_value_t = 1)]
    replicas: u8,
    /// For how long pods and nodes come and go, in seconds, and memory and descriptors are watched.
    #[arg(long, default_value = "0", value_parser = |s: &str| s.parse().map(Duration::from_secs))]
    soak: Duration,
    /// Where the figures go as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Added by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A cluster and the operators on it.
struct Bed {
    kubeconfig: PathBuf,
    cluster: Option<Process>,
    operators: Vec<Option<Process>>,
    metrics: Vec<String>,
    _dir: tempfile::TempDir,
}

impl Bed {
    fn new(replicas: u8) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let own = dir.path().join("kubeconfig");
        let (kubeconfig, cluster) = match std::env::var_os("VNODE_E2E_KUBECONFIG") {
            Some(file) => (PathBuf::from(file), None),
            None => (own.clone(), Some(start_cluster(&own)?)),
        };
        let mut bed = Self { kubeconfig, cluster, operators: Vec::new(), metrics: Vec::new(), _dir: dir };
        for n in 0..usize::from(replicas.max(1)) {
            bed.operators.push(None);
            bed.metrics.push(free_address()?);
            bed.start(n)?;
        }
        Ok(bed)
    }

    fn name(&self, replica: usize) -> String {
        format!("replica-{replica}")
    }

    fn start(&mut self, replica: usize) -> Result<()> {
        // Each may come to hold all nodes, so each has all ports of an address of its own.
        let address = format!("127.0.0.{}", replica + 1);
        let (name, metrics) = (self.name(replica), &self.metrics[replica]);
        self.operators[replica] = Some(start_operator(&self.kubeconfig, metrics, &address, &["--identity", &name])?);
        Ok(())
    }

    /// As `kill -9` does.
    fn kill(&mut self, replica: usize) {
        self.operators[replica] = None;
    }

    fn of_all(&self, figure: impl Fn(&Process) -> f64) -> f64 {
        self.operators.iter().flatten().map(figure).sum()
    }

    /// Resident memory of all operators in MiB.
    fn rss(&self) -> f64 {
        self.of_all(Process::rss)
    }

    /// Open file descriptors of all operators.
    fn descriptors(&self) -> f64 {
        self.of_all(|process| {
            std::fs::read_dir(format!("/proc/{}/fd", process.0.id())).map_or(f64::NAN, |open| open.count() as f64)
        })
    }

    /// Processor time of all operators in seconds.
    fn cpu(&self) -> f64 {
        self.of_all(Process::cpu)
    }

    /// That of the cluster, if it is ours.
    fn cluster_cpu(&self) -> f64 {
        self.cluster.as_ref().map_or(f64::NAN, Process::cpu)
    }
}

async fn measure(options: &Options, nodes: usize, report: &mut Report) -> Result<()> {
    let mut bed = Bed::new(options.replicas)?;
    let kubeconfig = kube::config::Kubeconfig::read_from(&bed.kubeconfig)?;
    let client = Client::try_from(Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?)?;
    scenarios::nodes(&client, &bed, options, nodes, report).await?;
    scenarios::idle(&bed, options, nodes, report).await;
    if options.pods_per_node > 0 {
        scenarios::fill(&client, &bed, nodes, nodes * options.pods_per_node, report).await?;
        scenarios::churn(&client, nodes, options, report).await?;
    }
    if !options.soak.is_zero() {
        soak::soak(&client, &bed, options, nodes, report).await?;
    }
    if options.replicas > 1 {
        scenarios::takeover(&client, &mut bed, report).await?;
    } else {
        scenarios::restart(&client, &mut bed, nodes, report).await?;
    }
    if options.pods_per_node > 0 {
        scenarios::clear(&client, &bed, report).await?;
    }
    if bed.cluster.is_none() {
        Api::<VirtualNode>::all(client).delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let mut report = Report::default();
    for &nodes in &options.nodes {
        report.begin(format!("{nodes} nodes, {} pods", nodes * options.pods_per_node));
        if let Err(error) = measure(&options, nodes, &mut report).await {
            eprintln!("given up: {error}");
        }
    }
    report.print();
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_vec_pretty(&report.json())?)?;
    }
    Ok(())
}
