//! What the benchmarks share: processes of their own, and what can be read of them.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// A process that is killed with its handle.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Resident memory in MiB.
    pub fn rss(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap_or_default();
        let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).and_then(|l| l.split_whitespace().next());
        kib.and_then(|k| k.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
    }

    /// Processor time used so far, in seconds. proc(5): utime and stime in ticks of 10 ms.
    pub fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap_or_default();
        let after = stat.rsplit(')').next().unwrap_or_default();
        let ticks = |n: usize| after.split_whitespace().nth(n).and_then(|t| t.parse::<f64>().ok()).unwrap_or(f64::NAN);
        (ticks(11) + ticks(12)) / 100.0
    }
}

/// An API server of its own.
pub fn start_cluster(kubeconfig: &Path) -> Result<Process> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vnode"));
    command.args(["dev", "--cluster-only", "--listen", "127.0.0.1:0", "--kubeconfig-out"]).arg(kubeconfig);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("piped")?).lines();
    lines
        .by_ref()
        .map_while(std::result::Result::ok)
        .find(|l| l.contains("https://"))
        .ok_or("the cluster did not start")?;
    std::thread::spawn(move || lines.for_each(drop));
    Ok(Process(child))
}

/// An operator on it.
pub fn start_operator(kubeconfig: &Path, metrics: &str, address: &str, more: &[&str]) -> Result<Process> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vnode"));
    command.arg("operator").arg("--kubeconfig").arg(kubeconfig).args(["--kubelet-ports", "20000-29999"]);
    command.args(["--node-ip", address, "--kubelet-bind-address", address, "--metrics-addr", metrics]).args(more);
    Ok(Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
}

/// The sum of a counter over its labels.
pub fn counter(metrics: &str, name: &str) -> f64 {
    let text = Command::new("curl").args(["-s", "-m", "10", &format!("http://{metrics}/metrics")]).output();
    let text = text.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let value = |l: &str| l.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok());
    text.lines().filter(|l| l.starts_with(name)).filter_map(value).sum()
}

/// An address that nobody listens on.
pub fn free_address() -> Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// Of sorted values.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = ((sorted.len() as f64 - 1.0) * share).round().max(0.0) as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}
