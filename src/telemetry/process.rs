//! What the kernel knows of this process, read from `/proc` when metrics are asked for.

use std::fmt::Write;

/// The process's memory, processor time and files as Prometheus text; empty where there is no `/proc`.
pub(crate) fn text() -> String {
    let mut out = String::new();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    if let Some(ticks) = cpu_ticks(&stat) {
        // The kernel's USER_HZ has been 100 on every architecture that we build for.
        gauge(
            &mut out,
            "process_cpu_seconds_total",
            "counter",
            "Processor time used, in seconds.",
            ticks as f64 / 100.0,
        );
    }
    if let Some(started) = started(&stat) {
        let help = "When the process started, in seconds since 1970.";
        gauge(&mut out, "process_start_time_seconds", "gauge", help, started);
    }
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let runtime = runtime.metrics();
        for (name, help, value) in [
            ("vnode_tokio_workers", "Threads that run tasks.", runtime.num_workers()),
            ("vnode_tokio_tasks", "Tasks that are not over.", runtime.num_alive_tasks()),
            ("vnode_tokio_queued_tasks", "Tasks that wait for a thread.", runtime.global_queue_depth()),
        ] {
            gauge(&mut out, name, "gauge", help, value as f64);
        }
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for (field, name, kind, help, unit) in [
        ("VmRSS", "process_resident_memory_bytes", "gauge", "Resident memory in bytes.", 1024.0),
        ("VmSize", "process_virtual_memory_bytes", "gauge", "Virtual memory in bytes.", 1024.0),
        ("Threads", "process_threads", "gauge", "Threads.", 1.0),
    ] {
        if let Some(value) = status_field(&status, field) {
            gauge(&mut out, name, kind, help, value as f64 * unit);
        }
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        // Reading the folder opens one of the entries counted.
        let open = entries.count().saturating_sub(1);
        gauge(&mut out, "process_open_fds", "gauge", "Open file descriptors.", open as f64);
    }
    out
}

fn gauge(out: &mut String, name: &str, kind: &str, help: &str, value: f64) {
    // OpenMetrics names the family of a counter without its suffix.
    let family = name.strip_suffix("_total").unwrap_or(name);
    // Writing to a String cannot fail.
    let _ = write!(out, "# HELP {family} {help}\n# TYPE {family} {kind}\n{name} {value}\n");
}

/// User and system time in ticks. The second field, the program's name, may hold spaces and brackets.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// The start in seconds since 1970: the kernel counts it from its own, in ticks.
fn started(stat: &str) -> Option<f64> {
    let ticks: u64 = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()?;
    let system = std::fs::read_to_string("/proc/stat").ok()?;
    let booted: u64 = system.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(booted as f64 + ticks as f64 / 100.0)
}

fn status_field(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_brackets_does_not_shift_the_fields() {
        let stat = "12 (a ) b) S 1 12 12 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 1 0 100 1 2";
        assert_eq!(cpu_ticks(stat), Some(12));
        assert_eq!(cpu_ticks(""), None);
    }

    #[test]
    fn status_fields_are_found_by_their_whole_name() {
        let status = "VmRSSx:\t1 kB\nVmRSS:\t  2048 kB\nThreads:\t3\n";
        assert_eq!(status_field(status, "VmRSS"), Some(2048));
        assert_eq!(status_field(status, "Threads"), Some(3));
        assert_eq!(status_field(status, "VmSize"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_memory_and_files() {
        let text = text();
        assert!(text.contains("\nprocess_resident_memory_bytes "));
        assert!(text.contains("\nprocess_open_fds "));
    }
}
