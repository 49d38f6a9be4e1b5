//! What nodes, pods and containers use, and how their probes went.
//!
//! What is not known is left out, never zero: who reads it believes a zero.

use jiff::Timestamp;

use super::PodRef;

/// Use of processor and memory at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// When it was measured.
    pub time: Timestamp,
    /// Processor time used since the start, in nanoseconds.
    pub cpu_nanos: Option<u64>,
    /// Processors in use, in billionths of one.
    pub cpu_nano_cores: Option<u64>,
    /// Memory that cannot be reclaimed under pressure, in bytes.
    pub memory_working_set: Option<u64>,
}

/// Use of one pod.
#[derive(Clone, Debug, PartialEq)]
pub struct PodUsage {
    /// Which pod.
    pub pod: PodRef,
    /// When it started.
    pub start_time: Option<Timestamp>,
    /// Its containers: name, start, use.
    pub containers: Vec<ContainerUsage>,
    /// Its network, when it has one of its own.
    pub network: Option<NetworkUsage>,
}

/// Use of one container.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerUsage {
    /// The container's name.
    pub name: String,
    /// When it started.
    pub start_time: Option<Timestamp>,
    /// What it uses.
    pub usage: Usage,
    /// What its logs take.
    pub logs: Option<FilesystemUsage>,
}

/// Use of a node and its pods. What is not known is left out, never zero.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct NodeUsage {
    /// The machine as a whole; the sum of the pods when `None`.
    pub node: Option<Usage>,
    /// The machine's network.
    pub network: Option<NetworkUsage>,
    /// The filesystem that pods' files are on.
    pub filesystem: Option<FilesystemUsage>,
    /// Each pod.
    pub pods: Vec<PodUsage>,
}

/// What went over a network since its interfaces are up.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkUsage {
    /// When it was measured.
    pub time: Timestamp,
    /// Its interfaces, the one to the rest of the world first. Without those that lead nowhere.
    pub interfaces: Vec<InterfaceUsage>,
}

/// What went over one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceUsage {
    /// Its name, such as `eth0`.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: Option<u64>,
    /// What could not be received.
    pub rx_errors: Option<u64>,
    /// Bytes sent.
    pub tx_bytes: Option<u64>,
    /// What could not be sent.
    pub tx_errors: Option<u64>,
}

/// Space and files on a filesystem, or of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FilesystemUsage {
    /// When it was measured.
    pub time: Timestamp,
    /// Bytes that fit on it.
    pub capacity_bytes: Option<u64>,
    /// Bytes that can be had.
    pub available_bytes: Option<u64>,
    /// Bytes in use.
    pub used_bytes: Option<u64>,
    /// Files that fit on it.
    pub inodes: Option<u64>,
    /// Files that can be made.
    pub inodes_free: Option<u64>,
    /// Files that there are.
    pub inodes_used: Option<u64>,
}

impl FilesystemUsage {
    /// Nothing but a time.
    pub fn at(time: Timestamp) -> Self {
        Self {
            time,
            capacity_bytes: None,
            available_bytes: None,
            used_bytes: None,
            inodes: None,
            inodes_free: None,
            inodes_used: None,
        }
    }
}

/// How one kind of probe of a container went so far.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeCounts {
    /// Of which pod.
    pub pod: PodRef,
    /// Of which container.
    pub container: String,
    /// `Liveness`, `Readiness` or `Startup`.
    pub kind: &'static str,
    /// Probes that failed.
    pub failed: u64,
    /// Probes that succeeded, by how long they took: up to each of [`PROBE_BUCKETS`], and longer.
    pub successful: [u64; PROBE_BUCKETS.len() + 1],
    /// How long all that succeeded took together, in seconds.
    pub seconds: f64,
}

/// In how many seconds probes answer. Kubernetes: `prometheus.DefBuckets`.
pub const PROBE_BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

impl InterfaceUsage {
    /// Reads Linux's `/proc/net/dev`, with `/proc/net/route` to know which interface comes first.
    pub(crate) fn of_linux(dev: &str, route: &str) -> Vec<Self> {
        const EVERYWHERE: &str = "00000000";
        let default = route.lines().skip(1).find_map(|line| {
            let mut fields = line.split_whitespace();
            let name = fields.next()?;
            (fields.next()? == EVERYWHERE).then_some(name)
        });
        let mut all: Vec<Self> = dev.lines().filter_map(Self::of_line).collect();
        // Stable: the others keep the kernel's order.
        all.sort_by_key(|i| Some(i.name.as_str()) != default);
        all
    }

    /// `name: bytes packets errs …` for what came in, eight numbers, and eight for what went out. The two lines of
    /// headings have no colon, and what goes over `lo` goes nowhere.
    fn of_line(line: &str) -> Option<Self> {
        let (name, figures) = line.split_once(':')?;
        let name = name.trim();
        let figures: Vec<u64> = figures.split_whitespace().map_while(|f| f.parse().ok()).collect();
        let [rx_bytes, _, rx_errors, _, _, _, _, _, tx_bytes, _, tx_errors, ..] = figures[..] else { return None };
        (name != "lo").then(|| Self {
            name: name.to_owned(),
            rx_bytes: Some(rx_bytes),
            rx_errors: Some(rx_errors),
            tx_bytes: Some(tx_bytes),
            tx_errors: Some(tx_errors),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_to_the_world_comes_first_and_the_one_to_nowhere_not_at_all() {
        let dev = "Inter-|   Receive                                                |  Transmit\n \
                   face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo\n    \
                   lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\ndocker0:0 0 0 0 0 0 0 0 5 1 0 0 0 0 0 0\n  \
                   eth0: 1000 10 2 0 0 0 0 0 2000 20 3 0 0 0 0 0\n";
        let route = "Iface\tDestination\tGateway\ndocker0\t0011AC00\t00000000\neth0\t00000000\t010011AC\n";
        let found = InterfaceUsage::of_linux(dev, route);
        assert_eq!(found.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["eth0", "docker0"]);
        let eth0 = &found[0];
        assert_eq!((eth0.rx_bytes, eth0.rx_errors), (Some(1000), Some(2)));
        assert_eq!((eth0.tx_bytes, eth0.tx_errors), (Some(2000), Some(3)));
        assert_eq!(InterfaceUsage::of_linux("", ""), []);
    }
}
