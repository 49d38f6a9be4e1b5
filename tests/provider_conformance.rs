//! Every provider of this crate passes the conformance suite.

use std::time::Duration;

use vnode::api::{MockConfig, ProviderSpec};
use vnode::provider::conformance::{self, Options};
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
