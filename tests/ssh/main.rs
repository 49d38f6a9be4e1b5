//! Pods on a device behind a real SSH server: what is promised of them, and what becomes of them when the connection,
//! the device or the operator goes away.
//!
//! Where no server can be started, each test says so and tests nothing.

#![cfg(feature = "ssh")]

mod faults;
mod pods;
mod streams;
mod trust;
mod world;

#[path = "../../e2e/support/checked.rs"]
mod checked;
#[path = "../../e2e/support/sshd.rs"]
mod sshd;

use std::time::Duration;

use sshd::{Flavour, Sshd};
use vnode::provider::conformance::{self, Options};
use world::World;

async fn conforms(flavour: Flavour, shell: Option<&str>) {
    let Some(sshd) = Sshd::start(flavour) else { return };
    let world = World::new(sshd, shell);
    let options = Options { patience: Duration::from_secs(30), ..Options::default() };
    let report = conformance::run(|context| std::future::ready(world.build(context)), options).await;
    world.nothing_runs().await;
    checked::record("ssh", &report);
}

#[tokio::test]
async fn a_device_with_the_machines_own_shell_conforms() {
    conforms(Flavour::Machine, None).await;
}

#[tokio::test]
async fn a_device_with_bash_conforms() {
    conforms(Flavour::Machine, Some("bash")).await;
}

#[tokio::test]
async fn a_device_with_nothing_but_busybox_conforms() {
    conforms(Flavour::BusyBox, Some("busybox sh")).await;
}
