//! Every provider of this crate passes the conformance suite.

use std::time::Duration;

use vnode::api::{MockConfig, ProcessConfig, ProviderSpec};
use vnode::provider::conformance::{self, Options};
use vnode::provider::process::{self, ProcessFactory};
use vnode::provider::registry::Registry;

fn options() -> Options {
    Options { patience: Duration::from_secs(10), ..Options::default() }
}

/// A registry of its own for each provider, as after a restart.
async fn mock(config: MockConfig) {
    conformance::run(
        |context| {
            let spec = ProviderSpec::mock(config.clone());
            async move { Registry::default().build(&spec, context) }
        },
        options(),
    )
    .await;
}

#[tokio::test]
async fn an_instant_simulated_node_conforms() {
    mock(MockConfig::default()).await;
}

#[tokio::test]
async fn a_slow_simulated_node_conforms() {
    mock(MockConfig {
        start_latency_ms: Some(120),
        stop_latency_ms: Some(80),
        jitter_percent: Some(30),
        ..MockConfig::default()
    })
    .await;
}

#[tokio::test]
async fn processes_of_this_machine_conform() {
    let state = tempfile::tempdir().unwrap();
    let registry = Registry::empty();
    let program = env!("CARGO_BIN_EXE_vnode").into();
    registry.register("process", ProcessFactory::allowed(state.path().to_owned(), Some(program)));
    let spec = ProviderSpec::process(ProcessConfig { allow_root: true, ..ProcessConfig::default() });
    let make = |context| std::future::ready(registry.build(&spec, context));
    conformance::run(make, options()).await;
    process::remove_all(state.path()).await;
}
