//! What `/proc` says of processes: families, use, listening ports.

use std::collections::{HashMap, HashSet};
use std::fs;

/// One line of the process table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Process {
    pub parent: i32,
    /// When it was started, in ticks since the machine was: with the pid it names a process for good.
    pub start: u64,
    /// Processor time used, its waited-for children's included, in ticks.
    pub ticks: u64,
    /// Memory in use, in pages.
    pub pages: u64,
    /// It has ended and waits for its parent to notice.
    pub zombie: bool,
}

/// Ticks in a second: what Linux tells programs on every architecture.
pub(super) const TICKS: u64 = 100;

/// `/proc/<pid>/stat`.
pub(super) fn process(pid: i32) -> Option<Process> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(stat: &str) -> Option<Process> {
    // The name is in parentheses and may hold anything, parentheses too.
    let rest = stat.rsplit_once(')')?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // Fields are counted from 1 in proc(5), and the third comes first here.
    let number = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
    Some(Process {
        parent: fields.get(1)?.parse().ok()?,
        start: number(22)?,
        ticks: number(14)? + number(15)? + number(16).unwrap_or(0) + number(17).unwrap_or(0),
        pages: number(24)?,
        zombie: *fields.first()? == "Z",
    })
}

/// All processes.
pub(super) fn table() -> HashMap<i32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return HashMap::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((pid, process(pid)?))).collect()
}

/// The processes that descend from one, without it.
pub(super) fn family(table: &HashMap<i32, Process>, root: i32) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for (pid, process) in table {
        children.entry(process.parent).or_default().push(*pid);
    }
    let (mut found, mut next) = (Vec::new(), vec![root]);
    while let Some(pid) = next.pop() {
        for child in children.remove(&pid).unwrap_or_default() {
            found.push(child);
            next.push(child);
        }
    }
    found
}

/// True when one of the processes listens on the port.
pub(super) fn listens(pids: &[i32], port: u16) -> bool {
    let mut sockets = HashSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        sockets.extend(text.lines().skip(1).filter_map(|line| listening(line, port)));
    }
    !sockets.is_empty()
        && pids.iter().any(|pid| {
            let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
            open.flatten().filter_map(|fd| fs::read_link(fd.path()).ok()).any(|target| {
                let text = target.to_string_lossy();
                let inode = text.strip_prefix("socket:[").and_then(|t| t.strip_suffix(']'));
                inode.and_then(|i| i.parse::<u64>().ok()).is_some_and(|i| sockets.contains(&i))
            })
        })
}

/// The socket's inode, if the line of `/proc/net/tcp` is of one that listens on the port.
fn listening(line: &str, port: u16) -> Option<u64> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let local = fields.get(1)?.rsplit_once(':')?.1;
    let fits = u16::from_str_radix(local, 16).ok()? == port && *fields.get(3)? == LISTEN;
    fields.get(9).filter(|_| fits)?.parse().ok()
}

/// Bytes of a page: 4096 on the machines that this runs on most, and only used for statistics.
pub(super) fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_are_read_whatever_the_program_is_called() {
        let line = "42 (a) b (c)) S 7 42 42 0 -1 4194560 500 600 0 0 11 12 3 4 20 0 1 0 98765 1000000 321 184 1";
        let want = Process { parent: 7, start: 98765, ticks: 30, pages: 321, zombie: false };
        assert_eq!(parse(line), Some(want));
        assert_eq!(parse("42"), None);
    }

    #[test]
    fn our_own_socket_is_found_by_its_port() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(listens(&[me], port));
        assert!(!listens(&[], port));
        drop(socket);
        assert!(!listens(&[me], port));
    }

    #[test]
    fn families_are_found() {
        let process = |parent| Process { parent, start: 0, ticks: 0, pages: 0, zombie: false };
        let table = [(1, 0), (2, 1), (3, 2), (4, 1), (5, 3)].map(|(pid, parent)| (pid, process(parent))).into();
        let mut found = family(&table, 2);
        found.sort_unstable();
        assert_eq!(found, [3, 5]);
    }
}
