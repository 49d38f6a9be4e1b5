//! What `/proc` says of processes: families, use, listening ports.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use jiff::Timestamp;
use rustix::process::{Pid, Signal};

use super::layout::LOG;
use crate::provider::{FilesystemUsage, InterfaceUsage, NetworkUsage};

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

/// The supervisors of containers below a state folder, those included that have only just been started.
pub(super) fn supervisors(state: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let words = [b"\0supervise\0", state.as_os_str().as_encoded_bytes(), b"/"].concat();
    let is_one = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(words.len()).any(|part| part == words)
    };
    entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(is_one).collect()
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

/// Kills processes, of which some may have ended by themselves.
pub(super) fn kill(pids: impl IntoIterator<Item = i32>) {
    for pid in pids.into_iter().filter_map(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
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

/// The filesystem that a folder is on.
pub(super) fn filesystem(dir: &Path, time: Timestamp) -> Option<FilesystemUsage> {
    let found = rustix::fs::statvfs(dir).ok()?;
    let bytes = |blocks: u64| Some(blocks.saturating_mul(found.f_frsize));
    // Some filesystems make files as they need them and count none.
    let inodes = Some(found.f_files).filter(|n| *n > 0);
    Some(FilesystemUsage {
        capacity_bytes: bytes(found.f_blocks),
        available_bytes: bytes(found.f_bavail),
        used_bytes: bytes(found.f_blocks.saturating_sub(found.f_bfree)),
        inodes,
        inodes_free: inodes.map(|_| found.f_ffree),
        inodes_used: inodes.map(|n| n.saturating_sub(found.f_ffree)),
        ..FilesystemUsage::at(time)
    })
}

/// The network of this machine, or of the container that this process is in.
pub(super) fn network(time: Timestamp) -> Option<NetworkUsage> {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    let interfaces = InterfaceUsage::of_linux(&read("/proc/net/dev"), &read("/proc/net/route"));
    (!interfaces.is_empty()).then_some(NetworkUsage { time, interfaces })
}

/// What the log files in a container's folder take.
pub(super) fn logs(home: &Path, time: Timestamp) -> Option<FilesystemUsage> {
    let files = fs::read_dir(home).ok()?.flatten().filter(|file| {
        let name = file.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix(LOG));
        number.is_some_and(|n| n.is_empty() || n.starts_with('.') && n[1..].bytes().all(|b| b.is_ascii_digit()))
    });
    let sizes: Vec<u64> = files.filter_map(|file| Some(file.metadata().ok()?.len())).collect();
    let (bytes, count) = (Some(sizes.iter().sum()), Some(sizes.len() as u64));
    Some(FilesystemUsage { used_bytes: bytes, inodes_used: count, ..FilesystemUsage::at(time) })
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
    fn a_folders_logs_and_its_filesystem_are_measured() {
        let (dir, now) = (tempfile::tempdir().unwrap(), Timestamp::UNIX_EPOCH);
        for (name, size) in [("log", 10), ("log.1", 20), ("log.x", 40), ("logs", 80), ("run.json", 160)] {
            fs::write(dir.path().join(name), vec![0; size]).unwrap();
        }
        let logs = logs(dir.path(), now).unwrap();
        assert_eq!((logs.used_bytes, logs.inodes_used, logs.capacity_bytes), (Some(30), Some(2), None));
        let on = filesystem(dir.path(), now).unwrap();
        assert!(on.available_bytes.unwrap() <= on.capacity_bytes.unwrap());
        assert!(on.used_bytes.unwrap() > 0);
        assert_eq!(filesystem(Path::new("/nowhere"), now), None);
        assert_eq!(super::logs(Path::new("/nowhere"), now), None);
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
