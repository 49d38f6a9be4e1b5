//! The simulator: pods that start, run, fail and end as configured, without running anything.
//!
//! | module | what it is |
//! |---|---|
//! | [`settings`] | how a pod behaves: the node's configuration with the pod's annotations over it |
//! | [`sim`] | a pod as a pure state machine that is told the time |
//! | [`node`] | a node's pods, and its configuration |
//! | [`engine`] | one task with one heap of timers for the pods of all nodes |
//! | [`logs`] | log lines, computed when they are read |
//! | [`session`] | exec, attach, port-forward |
//!
//! Everything random follows from the seed, the node's name and the pod's uid.
//! Annotations `mock.vnode.dev/<field>` override a node's configuration for a pod: `startLatencyMs`,
//! `stopLatencyMs`, `jitterPercent`, `runDurationMs`, `exitCode`, `createFailurePercent`,
//! `logLinesPerMinute`, and only for pods `initDurationMs`, `initExitCode`, `logText`,
//! `crashLoopBackOffMs`.

mod engine;
mod logs;
mod node;
mod session;
mod settings;
mod sim;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use tokio::runtime::Handle;

use super::registry::Factory;
use super::{
    Capabilities, ContainerUsage, Duplex, ExitStatus, LogOptions, LogStream, NodeDescription, NodeUsage, PodFeature,
    PodFeatures, PodObservation, PodRef, PodUsage, Provider, ProviderContext, ProviderError, ResolvedPod, Result,
    SessionIo, Usage,
};
use crate::api::{MockConfig, ProviderSpec};
use engine::{Engine, guard};
use node::{Behaviour, SimNode};
pub use settings::ANNOTATION_PREFIX;
use settings::{Settings, draw, unit};
use sim::{SimContainer, SimPod, State};

/// Makes simulated nodes. All that one factory makes on one runtime share a clock.
#[derive(Default)]
pub struct MockFactory {
    engines: Mutex<HashMap<tokio::runtime::Id, Weak<Engine>>>,
}

impl MockFactory {
    fn engine(&self) -> Result<Arc<Engine>> {
        let runtime = Handle::try_current().map_err(|e| ProviderError::unavailable(e.to_string()))?.id();
        let mut engines = guard(&self.engines);
        if let Some(engine) = engines.get(&runtime).and_then(Weak::upgrade) {
            return Ok(engine);
        }
        engines.retain(|_, engine| engine.strong_count() > 0);
        let engine = Engine::start();
        engines.insert(runtime, Arc::downgrade(&engine));
        Ok(engine)
    }
}

impl Factory for MockFactory {
    fn build(&self, spec: &ProviderSpec, context: ProviderContext) -> Result<Arc<dyn Provider>> {
        let config = spec.mock.clone().unwrap_or_default();
        if !matches!(config.fault.as_str(), "" | "unreachable" | "hang") {
            return Err(ProviderError::Invalid {
                field: "spec.provider.mock.fault".into(),
                message: format!("must be empty, unreachable or hang, not {:?}", config.fault),
            });
        }
        let engine = self.engine()?;
        let behaviour = Behaviour {
            settings: Arc::new(Settings::of_node(&config)),
            notifier: context.notifier,
            config: config.clone(),
        };
        let key = (context.node.clone(), context.node_uid);
        let mut nodes = guard(&engine.core.nodes);
        // A node that exists keeps its pods under the new configuration.
        let node = match nodes.get(&key).and_then(Weak::upgrade) {
            Some(node) => {
                node.behave(behaviour);
                node
            }
            None => {
                // Forgetting the dropped ones only when the map would grow keeps this cheap on average.
                if nodes.len() == nodes.capacity() {
                    nodes.retain(|_, node| node.strong_count() > 0);
                }
                let node = Arc::new(SimNode::new(context.node, behaviour, engine.core.clone()));
                nodes.insert(key, Arc::downgrade(&node));
                node
            }
        };
        drop(nodes);
        Ok(Arc::new(MockProvider { node, config, _engine: engine }))
    }

    fn capabilities(&self) -> Option<Capabilities> {
        Some(CAPABILITIES)
    }
}

const CAPABILITIES: Capabilities = Capabilities {
    notifies: true,
    volatile: true,
    // It runs nothing, so there is nothing that it could not do; but it keeps each pod's environment.
    ..Capabilities::serving_all(PodFeatures::ALL.without(&[PodFeature::ServiceLinks]))
};

/// One simulated node.
struct MockProvider {
    node: Arc<SimNode>,
    config: MockConfig,
    _engine: Arc<Engine>,
}

impl MockProvider {
    /// Fails or never returns when the configuration says so.
    async fn fault(&self) -> Result<()> {
        match self.config.fault.as_str() {
            "unreachable" => Err(ProviderError::unavailable("simulated: spec.provider.mock.fault is unreachable")),
            "hang" => std::future::pending().await,
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Provider for MockProvider {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    async fn create_pod(&self, pod: &ResolvedPod) -> Result<()> {
        self.fault().await?;
        self.node.create(pod, false)
    }

    async fn restore_pod(&self, pod: &ResolvedPod) -> Result<()> {
        self.fault().await?;
        self.node.create(pod, true)
    }

    async fn stop_pod(&self, pod: &PodRef, grace: Duration) -> Result<()> {
        self.fault().await?;
        self.node.stop(pod, grace)
    }

    async fn remove_pod(&self, pod: &PodRef) -> Result<()> {
        self.fault().await?;
        self.node.remove(pod);
        Ok(())
    }

    async fn get_pod(&self, pod: &PodRef) -> Result<PodObservation> {
        self.fault().await?;
        self.node.observe(pod)
    }

    async fn list_pods(&self) -> Result<Vec<PodObservation>> {
        self.fault().await?;
        Ok(self.node.observe_all())
    }

    async fn ping(&self) -> Result<()> {
        self.fault().await
    }

    async fn describe_node(&self) -> Result<NodeDescription> {
        self.fault().await?;
        let default = [("cpu", "32"), ("memory", "256Gi"), ("pods", "110")];
        let mut capacity: std::collections::BTreeMap<_, _> =
            default.into_iter().map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned()))).collect();
        capacity.extend(self.config.capacity.clone());
        Ok(NodeDescription {
            capacity,
            version: Some(concat!("mock-", env!("CARGO_PKG_VERSION")).to_owned()),
            ..NodeDescription::default()
        })
    }

    async fn logs(&self, pod: &PodRef, container: &str, options: &LogOptions) -> Result<LogStream> {
        self.fault().await?;
        logs::open(&self.node, pod, container, options)
    }

    async fn exec(&self, pod: &PodRef, container: &str, command: &[String], io: SessionIo) -> Result<ExitStatus> {
        self.fault().await?;
        session::exec(self.node.clone(), pod, container, command, io).await
    }

    async fn attach(&self, pod: &PodRef, container: &str, io: SessionIo) -> Result<ExitStatus> {
        self.fault().await?;
        session::attach(self.node.clone(), pod, container, io).await
    }

    async fn port_forward(&self, pod: &PodRef, port: u16) -> Result<Box<dyn Duplex>> {
        self.fault().await?;
        let runs = self.node.with(pod, |sim| sim.containers().any(|c| matches!(c.state, State::Running { .. })))?;
        if !runs {
            return Err(ProviderError::NotFound(format!("running container in pod {pod}")));
        }
        Ok(Box::new(session::Page::new(pod, port)))
    }

    async fn stats(&self) -> Result<NodeUsage> {
        self.fault().await?;
        let now = self.node.core.now();
        let pods = self.node.each(|sim| PodUsage {
            pod: sim.reference.clone(),
            start_time: Some(sim.start_time),
            containers: sim.containers().filter_map(|c| usage(sim, c, now)).collect(),
            network: None,
        });
        let pods: Vec<_> = pods.into_iter().filter(|p| !p.containers.is_empty()).collect();
        // Without pods there is no sum, but it is known that nothing is used.
        let idle = Usage { time: now, cpu_nanos: Some(0), cpu_nano_cores: Some(0), memory_working_set: Some(0) };
        Ok(NodeUsage { node: pods.is_empty().then_some(idle), pods, ..NodeUsage::default() })
    }
}

/// A wave around a base that follows from the seed; processor time is its integral.
fn usage(pod: &SimPod, container: &SimContainer, now: Timestamp) -> Option<ContainerUsage> {
    const SWING: f64 = 0.3;
    const PERIOD: f64 = 300.0;
    let State::Running { since, .. } = container.state else { return None };
    let age = now.duration_since(since).as_secs_f64().max(0.0);
    let luck = draw(pod.seed, container.name.as_bytes(), 2);
    let cores = 0.001 + 0.2 * unit(luck);
    let bytes = (16 << 20) as f64 + (240 << 20) as f64 * unit(draw(luck, b"memory", 3));
    let pace = std::f64::consts::TAU / PERIOD;
    let angle = age * pace;
    let nanos = |cores: f64| Some((cores * 1e9) as u64);
    Some(ContainerUsage {
        name: container.name.to_string(),
        start_time: Some(since),
        logs: None,
        usage: Usage {
            time: now,
            cpu_nanos: nanos(cores * (age + SWING * (1.0 - angle.cos()) / pace)),
            cpu_nano_cores: nanos(cores * (1.0 + SWING * angle.sin())),
            memory_working_set: Some((bytes * (1.0 + 0.1 * angle.sin())) as u64),
        },
    })
}

#[cfg(test)]
mod tests;
