//! Groups of processes that the kernel limits: one hierarchy (cgroup v2), or one for each controller (v1).
//!
//! ```text
//!  v2  /sys/fs/cgroup/vnode/<container>                    memory and cpu
//!  v1  /sys/fs/cgroup/memory/vnode/<container>, /sys/fs/cgroup/cpu/vnode/<container>
//! ```
//!
//! As container engines do, groups are made below the root of a hierarchy. Where that is not allowed, nothing is
//! limited and the node says so.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::proc;
use crate::provider::runtime::limits::{Limits, PERIOD};

/// The group of all of ours.
const BASE: &str = "vnode";
const PROCS: &str = "cgroup.procs";
/// How often what is left in a group is killed before the group is left as it is.
const TRIES: u32 = 50;

/// Where this program may make groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cgroups {
    v2: bool,
    /// The roots of the hierarchies that have these controllers; the same for v2.
    memory: PathBuf,
    cpu: PathBuf,
}

impl Cgroups {
    /// Looks, once for this process, at what the machine has, and tries it.
    pub fn of_machine() -> Option<&'static Self> {
        static FOUND: OnceLock<Option<Cgroups>> = OnceLock::new();
        let find = || {
            let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
            candidates(&mounts).into_iter().find(|c| c.prepare().is_ok())
        };
        FOUND.get_or_init(find).as_ref()
    }

    /// Makes the group of all of ours and tries whether one below it has what is needed.
    fn prepare(&self) -> io::Result<()> {
        for root in [&self.memory, &self.cpu] {
            fs::create_dir_all(root.join(BASE))?;
            if self.v2 {
                for dir in [root.clone(), root.join(BASE)] {
                    fs::write(dir.join("cgroup.subtree_control"), "+memory +cpu")?;
                }
            }
        }
        let probe = self.group(&format!("probe-{}-{:08x}", std::process::id(), rand::random::<u32>()));
        let made = probe.make(&Limits { memory: Some(64 << 20), quota: Some(PERIOD), shares: 2 });
        probe.remove();
        made
    }

    /// The group of a container. Nothing is made yet.
    pub fn group(&self, name: &str) -> Group {
        let dir = |root: &Path| root.join(BASE).join(name);
        Group { v2: self.v2, memory: dir(&self.memory), cpu: dir(&self.cpu) }
    }
}

/// The hierarchies that are mounted and could do. proc_pid_mountinfo(5)
fn candidates(mounts: &str) -> Vec<Cgroups> {
    let mut found = Vec::new();
    let (mut memory, mut cpu) = (None, None);
    for line in mounts.lines() {
        let Some((place, kind)) = line.split_once(" - ") else { continue };
        let Some(at) = place.split(' ').nth(4).map(PathBuf::from) else { continue };
        let mut kind = kind.split(' ');
        match (kind.next(), kind.nth(1)) {
            (Some("cgroup2"), _) => found.push(Cgroups { v2: true, memory: at.clone(), cpu: at }),
            (Some("cgroup"), Some(options)) => {
                let has = |name| options.split(',').any(|o| o == name);
                if has("memory") {
                    memory = Some(at.clone());
                }
                if has("cpu") {
                    cpu = Some(at);
                }
            }
            _ => {}
        }
    }
    found.extend(memory.zip(cpu).map(|(memory, cpu)| Cgroups { v2: false, memory, cpu }));
    found
}

/// The group of one container, kept with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Group {
    v2: bool,
    memory: PathBuf,
    cpu: PathBuf,
}

/// Where a process goes into a group.
#[derive(Debug, Default)]
pub(super) struct Entrance(Vec<fs::File>);

impl Entrance {
    /// Takes this process into the group. It must have one thread, and the right to.
    pub fn enter(mut self) -> io::Result<()> {
        self.0.iter_mut().try_for_each(|file| file.write_all(b"0"))
    }
}

/// A file of a group, and what is written to it.
#[derive(Debug, PartialEq, Eq)]
struct Setting<'a> {
    dir: &'a Path,
    file: &'static str,
    value: String,
    /// Some kernels do not have it.
    optional: bool,
}

impl Group {
    fn dirs(&self) -> impl Iterator<Item = &PathBuf> {
        let second = (self.cpu != self.memory).then_some(&self.cpu);
        std::iter::once(&self.memory).chain(second)
    }

    /// What the kernel is told. Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst
    fn settings(&self, limits: &Limits) -> Vec<Setting<'_>> {
        let setting = |dir, file, value, optional| Setting { dir, file, value, optional };
        let (memory, cpu) = (self.memory.as_path(), self.cpu.as_path());
        let amount = |n: Option<i64>, none: &str| n.map_or_else(|| none.to_owned(), |n| n.to_string());
        if self.v2 {
            // The weight that the same shares have had since there are weights.
            let weight = 1 + (limits.shares - 2) * 9999 / 262_142;
            return vec![
                setting(memory, "memory.max", amount(limits.memory, "max"), false),
                setting(memory, "memory.swap.max", "0".into(), true),
                // kubelet: a container ends as a whole when it has not enough.
                setting(memory, "memory.oom.group", "1".into(), true),
                setting(cpu, "cpu.max", format!("{} {PERIOD}", amount(limits.quota, "max")), false),
                setting(cpu, "cpu.weight", weight.to_string(), true),
            ];
        }
        vec![
            setting(memory, "memory.limit_in_bytes", amount(limits.memory, "-1"), false),
            setting(memory, "memory.memsw.limit_in_bytes", amount(limits.memory, "-1"), true),
            setting(cpu, "cpu.cfs_period_us", PERIOD.to_string(), false),
            setting(cpu, "cpu.cfs_quota_us", amount(limits.quota, "-1"), false),
            setting(cpu, "cpu.shares", limits.shares.to_string(), true),
        ]
    }

    /// Makes the group with these limits.
    pub fn make(&self, limits: &Limits) -> io::Result<()> {
        for dir in self.dirs() {
            match fs::create_dir(dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        self.set(limits)
    }

    /// Changes the limits of what runs in it.
    pub fn set(&self, limits: &Limits) -> io::Result<()> {
        if let Some(used) = self.used_beyond(limits) {
            let message = format!("it uses {used} bytes of memory, more than the new limit");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        // Memory with swap can never be less than memory alone, so which of the two comes first depends on whether
        // they grow: the second time all fit.
        self.write(limits).or_else(|_| self.write(limits))
    }

    fn write(&self, limits: &Limits) -> io::Result<()> {
        let mut result = Ok(());
        for Setting { dir, file, value, optional } in self.settings(limits) {
            if let Err(error) = fs::write(dir.join(file), &value)
                && !optional
            {
                let message = format!("writing {value} to {}: {error}", dir.join(file).display());
                result = Err(io::Error::new(error.kind(), message));
            }
        }
        result
    }

    /// What the kernel would kill for. kubelet refuses such a change as well.
    fn used_beyond(&self, limits: &Limits) -> Option<i64> {
        let file = if self.v2 { "memory.current" } else { "memory.usage_in_bytes" };
        let used: i64 = fs::read_to_string(self.memory.join(file)).ok()?.trim().parse().ok()?;
        (used > limits.memory?).then_some(used)
    }

    /// The way into the group, for a process that will not see it any more when it goes in.
    pub fn entrance(&self) -> io::Result<Entrance> {
        let open = |dir: &PathBuf| fs::OpenOptions::new().write(true).open(dir.join(PROCS));
        self.dirs().map(open).collect::<io::Result<_>>().map(Entrance)
    }

    /// Whether a process of the group was killed for want of memory.
    pub fn ran_out_of_memory(&self) -> bool {
        let file = if self.v2 { "memory.events" } else { "memory.oom_control" };
        oom_kills(&fs::read_to_string(self.memory.join(file)).unwrap_or_default()) > 0
    }

    /// Removes the group, and kills what is left in it. Blocks for a moment.
    pub fn remove(&self) {
        for dir in self.dirs() {
            for _ in 0..TRIES {
                match fs::remove_dir(dir) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Ok(()) => break,
                    Err(_) => {}
                }
                let left = fs::read_to_string(dir.join(PROCS)).unwrap_or_default();
                proc::kill(left.lines().filter_map(|l| l.parse().ok()));
                // There is nothing to wait for: a group says nowhere that its last process is gone for good.
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

/// The number after `oom_kill` in what a kernel says of a group.
fn oom_kills(text: &str) -> u64 {
    let found = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    found.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "30 25 0:26 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
                      31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                      32 25 0:28 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n";
    const V2: &str = "33 25 0:29 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn hierarchies_are_found_where_they_are_mounted() {
        let at = |v2, memory: &str, cpu: &str| Cgroups { v2, memory: memory.into(), cpu: cpu.into() };
        let two = at(true, "/sys/fs/cgroup", "/sys/fs/cgroup");
        let one = at(false, "/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu,cpuacct");
        assert_eq!(candidates(V1), std::slice::from_ref(&one));
        assert_eq!(candidates(V2), std::slice::from_ref(&two));
        assert_eq!(candidates(&format!("{V1}{V2}")), [two, one], "both, the newer one first");
        assert_eq!(candidates("24 1 0:22 / /proc rw - proc proc rw\nnonsense\n"), []);
    }

    #[test]
    fn the_kernel_is_told_in_its_own_words() {
        let words = |v2: bool, limits: Limits| {
            let (memory, cpu) = (PathBuf::from("/m"), PathBuf::from(if v2 { "/m" } else { "/c" }));
            let group = Group { v2, memory, cpu };
            let all = group.settings(&limits).into_iter();
            all.map(|s| format!("{}/{}={}", s.dir.display(), s.file, s.value)).collect::<Vec<_>>().join(" ")
        };
        let some = Limits { memory: Some(1 << 20), quota: Some(50_000), shares: 1024 };
        assert_eq!(
            words(true, some),
            "/m/memory.max=1048576 /m/memory.swap.max=0 /m/memory.oom.group=1 /m/cpu.max=50000 100000 /m/cpu.weight=39"
        );
        assert_eq!(
            words(false, some),
            "/m/memory.limit_in_bytes=1048576 /m/memory.memsw.limit_in_bytes=1048576 /c/cpu.cfs_period_us=100000 \
             /c/cpu.cfs_quota_us=50000 /c/cpu.shares=1024"
        );
        let none = words(true, Limits::default());
        assert!(none.contains("memory.max=max") && none.contains("cpu.max=max 100000") && none.contains("weight=1"));
        assert!(words(false, Limits::default()).contains("memory.limit_in_bytes=-1"));
    }

    #[test]
    fn kills_for_want_of_memory_are_counted_in_either_form() {
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
        assert_eq!(oom_kills("low 0\nhigh 0\nmax 2\noom 1\noom_kill 1\noom_group_kill 0\n"), 1);
        assert_eq!(oom_kills(""), 0);
    }

    #[test]
    fn a_group_is_made_changed_and_removed_where_that_is_allowed() {
        let Some(cgroups) = Cgroups::of_machine() else {
            eprintln!("*** SKIPPED, NOTHING WAS TESTED: groups cannot be made here");
            return;
        };
        let group = cgroups.group(&format!("test-{}", std::process::id()));
        group.make(&Limits { memory: Some(8 << 20), quota: Some(20_000), shares: 100 }).unwrap();
        for memory in [4 << 20, 16 << 20] {
            group.set(&Limits { memory: Some(memory), quota: None, shares: 2 }).unwrap();
        }
        assert!(!group.ran_out_of_memory());
        group.remove();
        assert!(group.dirs().all(|dir| !dir.exists()));
    }
}
