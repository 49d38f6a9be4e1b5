//! The clock of the operator's machine jumps, as when it is set by hand, or a virtual machine is resumed.

use std::collections::BTreeSet;
use std::path::Path;

use crate::replicas::{fleet, shards, untouched};
use crate::support::{Bed, eventually, pod};

/// Debian's `faketime`: a program under it reads its time from a file.
fn faketime() -> String {
    format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH)
}

const NODES: usize = 6;

/// When a node's Lease was renewed last, by the operator's clock, in seconds.
fn renewed(bed: &Bed, node: &str) -> i64 {
    let lease = bed.get(&format!("lease/{node} -n kube-node-lease")).expect("it is there");
    let time: jiff::Timestamp = lease["spec"]["renewTime"].as_str().and_then(|t| t.parse().ok()).expect("a time");
    time.as_second()
}

#[test]
fn a_clock_that_jumps_costs_no_node_and_no_pod() {
    let faketime = faketime();
    if !Path::new(&faketime).exists() {
        eprintln!("*** SKIPPED, NOTHING WAS TESTED: {faketime} is not installed (Debian's faketime)");
        return;
    }
    let bed = Bed::cluster_only();
    let clock = bed.dir.path().join("clock");
    let set = |offset: &str| std::fs::write(&clock, offset).expect("a file");
    set("+0");
    let file = clock.to_str().expect("a path");
    let variables = [
        ("LD_PRELOAD", faketime.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", file),
        ("FAKETIME_NO_CACHE", "1"),
        // What jumps is the time of day; Linux' monotonic clock never does.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let _replicas = ["one", "two"].map(|identity| bed.start_replica_with(identity, &variables));
    let nodes = fleet(&bed, NODES);
    eventually("both replicas have nodes", || {
        let owners: BTreeSet<_> = shards(&bed).into_values().collect();
        (owners.len() == 2).then_some(())
    });
    let state = || (shards(&bed), untouched(&bed, &nodes));
    let before = state();
    for (n, (offset, hours)) in [("+2h", 2), ("-3h", -3)].into_iter().enumerate() {
        set(offset);
        // Every Lease is renewed by the new time, and then once more, which is longer than a replica may be silent.
        let jumped = |node: &String| {
            let at = renewed(&bed, node);
            let off = at - jiff::Timestamp::now().as_second() - hours * 3600;
            (off.abs() < 120).then_some(at)
        };
        let first: Vec<_> =
            nodes.iter().map(|node| eventually(&format!("{node} is renewed at {offset}"), || jumped(node))).collect();
        for (node, first) in nodes.iter().zip(first) {
            eventually(&format!("{node} is renewed again"), || (renewed(&bed, node) > first + 5).then_some(()));
        }
        let late = format!("late-{n}");
        bed.apply(&pod(&late, &nodes[0], ""));
        bed.wait_phase(&late, "Running");
        assert_eq!(state(), before, "the clock at {offset}");
    }
    // Whose certificate is not good yet by the operator's clock is let in when the clock is right again.
    set("+0");
    eventually("its kubelet API answers", || {
        bed.try_kubectl(&format!("logs on-{} --tail=1", nodes[0])).status.success().then_some(())
    });
}
