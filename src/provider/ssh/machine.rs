//! What `/proc` of a device says, as it was sent: pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::provider::{FilesystemUsage, InterfaceUsage, NetworkUsage, NodeDescription, goarch};

/// Ticks in a second: what Linux tells programs on every architecture.
pub(super) const TICKS: u64 = 100;

/// One line of the process table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Process {
    parent: i32,
    session: i32,
    /// Processor time used, its waited-for children's included.
    pub ticks: u64,
    pub pages: u64,
}

/// All processes of a device.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub page: u64,
    processes: HashMap<i32, Process>,
}

impl Table {
    /// From what the helper's `vn_table` prints.
    pub fn read(text: &str) -> Self {
        let mut table = Self { page: 4096, processes: HashMap::new() };
        for line in text.lines() {
            if let Some(page) = line.strip_prefix("page ") {
                table.page = page.trim().parse().unwrap_or(4096);
            } else if let Some((pid, process)) = process(line) {
                table.processes.insert(pid, process);
            }
        }
        table
    }

    /// What the processes of a session use, and of those that descend from its leader.
    pub fn usage(&self, leader: i32) -> Option<(u64, u64)> {
        let of: Vec<&Process> = self
            .processes
            .iter()
            .filter(|(pid, p)| p.session == leader || self.descends(**pid, leader))
            .map(|(_, p)| p)
            .collect();
        (!of.is_empty()).then(|| (of.iter().map(|p| p.ticks).sum(), of.iter().map(|p| p.pages).sum()))
    }

    fn descends(&self, mut pid: i32, from: i32) -> bool {
        // A table that changed while it was read may have a circle in it.
        for _ in 0..64 {
            if pid == from {
                return true;
            }
            match self.processes.get(&pid) {
                Some(process) if process.parent > 1 => pid = process.parent,
                _ => return false,
            }
        }
        false
    }
}

/// `/proc/<pid>/stat`
fn process(stat: &str) -> Option<(i32, Process)> {
    let pid = stat.split(' ').next()?.parse().ok()?;
    // The name is in parentheses and may hold anything, parentheses too.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // Fields are counted from 1 in proc(5), and the third comes first here.
    let number = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
    let process = Process {
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        ticks: number(14)? + number(15)? + number(16).unwrap_or(0) + number(17).unwrap_or(0),
        pages: number(24)?,
    };
    Some((pid, process))
}

/// True when `vn_sockets` shows that one of the processes listens on the port.
pub(super) fn listens(text: &str, port: u16) -> bool {
    let listening: HashSet<&str> = text.lines().filter_map(|line| inode(line, port)).collect();
    let open = |line: &str| {
        let (_, rest) = line.split_once("socket:[")?;
        Some(listening.contains(rest.split(']').next()?))
    };
    text.lines().filter_map(open).any(|is| is)
}

/// The socket's inode, if the line of `/proc/net/tcp` is of one that listens on the port.
fn inode(line: &str, port: u16) -> Option<&str> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let local = fields.get(1)?.rsplit_once(':')?.1;
    let fits = u16::from_str_radix(local, 16).ok()? == port && *fields.get(3)? == LISTEN;
    fields.get(9).copied().filter(|_| fits)
}

/// From what the helper's `vn_describe` prints.
pub(super) fn describe(text: &str) -> NodeDescription {
    let facts: HashMap<&str, &str> = text.lines().filter_map(|l| l.split_once(' ')).collect();
    let fact = |name: &str| facts.get(name).copied().filter(|v| !v.is_empty());
    let number = |name: &str| fact(name)?.split(' ').next()?.parse::<u64>().ok().filter(|n| *n > 0);
    let mut capacity = BTreeMap::new();
    capacity.extend(number("cpus").map(|n| ("cpu".to_owned(), Quantity(n.to_string()))));
    capacity.extend(number("memory").map(|kib| ("memory".to_owned(), Quantity(format!("{kib}Ki")))));
    NodeDescription {
        capacity,
        operating_system: fact("os").map(str::to_ascii_lowercase),
        architecture: fact("arch").map(|a| goarch(a).to_owned()),
        version: fact("kernel").map(|k| format!("ssh-{k}")),
        ..NodeDescription::default()
    }
}

/// From what the helper's `vn_machine` prints: the device's network, and the disk that pods are on.
pub(super) fn usage(text: &str, time: Timestamp) -> (Option<NetworkUsage>, Option<FilesystemUsage>) {
    let lines = |what: &str| {
        let of: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix(what)).collect();
        of.join("\n")
    };
    let interfaces = InterfaceUsage::of_linux(&lines("net "), &lines("route "));
    // A line of headings, then: filesystem, KiB in all, used, available.
    let disk = lines("disk ");
    let kib: Vec<u64> =
        disk.lines().nth(1).unwrap_or_default().split_whitespace().skip(1).map_while(|f| f.parse().ok()).collect();
    let filesystem = match kib[..] {
        [capacity, used, available, ..] => Some(FilesystemUsage {
            capacity_bytes: Some(capacity.saturating_mul(1024)),
            used_bytes: Some(used.saturating_mul(1024)),
            available_bytes: Some(available.saturating_mul(1024)),
            ..FilesystemUsage::at(time)
        }),
        _ => None,
    };
    ((!interfaces.is_empty()).then_some(NetworkUsage { time, interfaces }), filesystem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_and_disk_are_read_from_what_the_device_prints_and_left_out_when_it_does_not() {
        let text = "page 4096\nnet Inter-| Receive | Transmit\nnet face |bytes packets\n\
                    net lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\nnet wlan0: 70 1 0 0 0 0 0 0 80 1 0 0 0 0 0 0\n\
                    route Iface Destination\nroute wlan0 00000000 01\n\
                    disk Filesystem 1024-blocks Used Available Capacity Mounted on\ndisk /dev/root 100 40 50 45% /\n";
        let (network, disk) = usage(text, Timestamp::UNIX_EPOCH);
        let interfaces = network.unwrap().interfaces;
        assert_eq!((interfaces.len(), interfaces[0].name.as_str()), (1, "wlan0"));
        assert_eq!((interfaces[0].rx_bytes, interfaces[0].tx_bytes), (Some(70), Some(80)));
        let disk = disk.unwrap();
        assert_eq!((disk.capacity_bytes, disk.used_bytes), (Some(102_400), Some(40_960)));
        assert_eq!((disk.available_bytes, disk.inodes), (Some(51_200), None));
        assert_eq!(usage("page 4096\n", Timestamp::UNIX_EPOCH), (None, None));
    }

    #[test]
    fn the_processes_of_a_container_are_added_up() {
        let line = |pid: i32, parent: i32, session: i32| {
            format!(
                "{pid} (a) b (c)) S {parent} {session} {session} 0 -1 4194560 5 6 0 0 11 12 3 4 20 0 1 0 98765 1000 321 184 1"
            )
        };
        let all = [line(10, 1, 10), line(11, 10, 10), line(12, 11, 12), line(20, 1, 20)].join("\n");
        let table = Table::read(&format!("page 16384\nprocesses\n{all}\nnonsense\n"));
        assert_eq!(table.page, 16384);
        assert_eq!(table.usage(10), Some((90, 963)));
        assert_eq!(table.usage(99), None);
    }

    #[test]
    fn a_port_is_a_pods_when_one_of_its_processes_listens_there() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                    0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1\n   \
                    1: 0100007F:1F91 00000000:0000 01 00000000:00000000 00:00000000 00000000  1000        0 4243 1\n\
                    total 0\nlrwx------ 1 me me 64 Nov 21 08:00 3 -> socket:[4242]\n\
                    lrwx------ 1 me me 64 Nov 21 08:00 4 -> socket:[4243]\n";
        assert!(listens(text, 8080));
        assert!(!listens(text, 8081), "connected is not listening");
        assert!(!listens(&text.replace("[4242]", "[1]"), 8080));
    }

    #[test]
    fn a_device_is_described_as_far_as_it_tells() {
        let told = describe("os Linux\narch armv7l\nkernel 5.10.1\ncpus 4\nmemory 1024 kB\n");
        assert_eq!(told.capacity["memory"].0, "1024Ki");
        assert_eq!((told.operating_system.as_deref(), told.architecture.as_deref()), (Some("linux"), Some("arm")));
        assert!(describe("os Linux\narch \ncpus 0\nmemory\n").capacity.is_empty());
    }
}
