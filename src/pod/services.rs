//! Environment variables that name the services of a pod's namespace. Kubernetes: `pkg/kubelet/envvars`.
//!
//! One watch of Services for the whole process; of each only its address and ports are kept.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::runtime::watcher::{self, Config, Event};
use tokio::sync::watch as watch_channel;
use tokio_util::sync::CancellationToken;

use crate::cluster::watch::watch;

/// How long a pod waits for the services to be known when the process has just started.
const PATIENCE: Duration = Duration::from_secs(10);
/// The service that every pod is told of, wherever it is.
const MASTER: (&str, &str) = ("default", "kubernetes");

/// What of a Service its variables are made from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    address: String,
    /// Name, protocol, port.
    ports: Vec<(String, String, i32)>,
}

type ByNamespace = HashMap<String, BTreeMap<String, Known>>;

/// The services of the cluster.
#[derive(Default)]
pub(crate) struct Services {
    known: RwLock<ByNamespace>,
    synced: watch_channel::Sender<bool>,
    refused: AtomicBool,
}

impl Services {
    /// Follows the Services until `shutdown`.
    pub async fn run(&self, client: kube::Client, shutdown: CancellationToken) {
        let mut stream = std::pin::pin!(watch(Api::<Service>::all(client), Config::default().page_size(500)));
        let mut listed = ByNamespace::new();
        while let Some(Some(next)) = shutdown.run_until_cancelled(stream.next()).await {
            match next {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(service)) => put(&mut listed, service),
                Ok(Event::InitDone) => {
                    *self.write() = std::mem::take(&mut listed);
                    self.refused.store(false, Ordering::Release);
                    self.synced.send_replace(true);
                }
                Ok(Event::Apply(service)) => put(&mut self.write(), service),
                Ok(Event::Delete(service)) => {
                    let meta = service.metadata;
                    let (namespace, name) = (meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default());
                    if let Some(services) = self.write().get_mut(&namespace) {
                        services.remove(&name);
                    }
                }
                Err(error) => {
                    // Without the right to see them pods run all the same; who uses such variables finds it here.
                    if is_refusal(&error) && !self.refused.swap(true, Ordering::AcqRel) {
                        tracing::warn!(%error, "services cannot be read; pods get no variables for them");
                        self.synced.send_replace(true);
                    }
                    tracing::debug!(%error, "the watch of services is interrupted");
                }
            }
        }
    }

    /// The variables for a pod of this namespace. Without `links` only those of the API server's own service.
    pub async fn variables(&self, namespace: &str, links: bool) -> Vec<(String, String)> {
        // After the patience it goes on with what there is, rather than hold up every pod.
        let _ = tokio::time::timeout(PATIENCE, self.synced.subscribe().wait_for(|s| *s)).await;
        let all = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut chosen: BTreeMap<&str, &Known> = BTreeMap::new();
        if let Some(master) = all.get(MASTER.0).and_then(|s| s.get(MASTER.1)) {
            chosen.insert(MASTER.1, master);
        }
        if links {
            chosen.extend(all.get(namespace).into_iter().flatten().map(|(name, known)| (name.as_str(), known)));
        }
        chosen.into_iter().flat_map(|(name, known)| variables_of(name, known)).collect()
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, ByNamespace> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_refusal(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(e) | watcher::Error::WatchStartFailed(e)) = error else { return false };
    matches!(e, kube::Error::Api(status) if matches!(status.code, 401 | 403 | 404))
}

/// Headless services have no address and so no variables.
fn put(services: &mut ByNamespace, service: Service) {
    let (meta, spec) = (service.metadata, service.spec.unwrap_or_default());
    let (namespace, name) = (meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default());
    let of = services.entry(namespace).or_default();
    match spec.cluster_ip.filter(|ip| !ip.is_empty() && ip != "None") {
        Some(address) => {
            let ports = spec.ports.unwrap_or_default().into_iter();
            let port = |p: k8s_openapi::api::core::v1::ServicePort| {
                let protocol = p.protocol.filter(|p| !p.is_empty()).unwrap_or_else(|| "TCP".into());
                (p.name.unwrap_or_default(), protocol, p.port)
            };
            of.insert(name, Known { address, ports: ports.map(port).collect() });
        }
        None => drop(of.remove(&name)),
    }
}

fn variables_of(service: &str, known: &Known) -> Vec<(String, String)> {
    let upper = |text: &str| text.replace('-', "_").to_uppercase();
    let prefix = upper(service);
    let mut all = vec![(format!("{prefix}_SERVICE_HOST"), known.address.clone())];
    let Some((_, first_protocol, first)) = known.ports.first() else { return all };
    let bracketed = match known.address.contains(':') {
        true => format!("[{}]", known.address),
        false => known.address.clone(),
    };
    let url = |protocol: &str, port: i32| format!("{}://{bracketed}:{port}", protocol.to_lowercase());
    all.push((format!("{prefix}_SERVICE_PORT"), first.to_string()));
    for (name, _, port) in known.ports.iter().filter(|(name, ..)| !name.is_empty()) {
        all.push((format!("{prefix}_SERVICE_PORT_{}", upper(name)), port.to_string()));
    }
    all.push((format!("{prefix}_PORT"), url(first_protocol, *first)));
    for (_, protocol, port) in &known.ports {
        let each = format!("{prefix}_PORT_{port}_{}", protocol.to_uppercase());
        all.push((format!("{each}_PROTO"), protocol.to_lowercase()));
        all.push((format!("{each}_PORT"), port.to_string()));
        all.push((format!("{each}_ADDR"), known.address.clone()));
        all.push((each, url(protocol, *port)));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn services(all: serde_json::Value) -> Services {
        let services = Services::default();
        for service in all.as_array().unwrap() {
            put(&mut services.write(), serde_json::from_value(service.clone()).unwrap());
        }
        services.synced.send_replace(true);
        services
    }

    fn service(namespace: &str, name: &str, ip: &str, ports: serde_json::Value) -> serde_json::Value {
        json!({"metadata": {"namespace": namespace, "name": name}, "spec": {"clusterIP": ip, "ports": ports}})
    }

    #[tokio::test]
    async fn a_service_has_the_variables_that_kubelet_makes() {
        let port = json!([{"name": "http-main", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
        let all = services(json!([service("shop", "my-db", "10.0.0.7", port)])).variables("shop", true).await;
        let text: Vec<_> = all.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            text,
            [
                "MY_DB_SERVICE_HOST=10.0.0.7",
                "MY_DB_SERVICE_PORT=80",
                "MY_DB_SERVICE_PORT_HTTP_MAIN=80",
                "MY_DB_SERVICE_PORT_DNS=53",
                "MY_DB_PORT=tcp://10.0.0.7:80",
                "MY_DB_PORT_80_TCP_PROTO=tcp",
                "MY_DB_PORT_80_TCP_PORT=80",
                "MY_DB_PORT_80_TCP_ADDR=10.0.0.7",
                "MY_DB_PORT_80_TCP=tcp://10.0.0.7:80",
                "MY_DB_PORT_53_UDP_PROTO=udp",
                "MY_DB_PORT_53_UDP_PORT=53",
                "MY_DB_PORT_53_UDP_ADDR=10.0.0.7",
                "MY_DB_PORT_53_UDP=udp://10.0.0.7:53",
            ]
        );
    }

    #[tokio::test]
    async fn a_pod_is_told_of_its_namespace_and_of_the_api_server() {
        let port = || json!([{"port": 443}]);
        let all = services(json!([
            service("default", "kubernetes", "10.0.0.1", port()),
            service("default", "other", "10.0.0.2", port()),
            service("shop", "six", "fd00::1", port()),
            service("shop", "headless", "None", port()),
        ]));
        let hosts = |vars: Vec<(String, String)>| -> Vec<String> {
            vars.into_iter().map(|(k, _)| k).filter(|k| k.ends_with("_SERVICE_HOST")).collect()
        };
        assert_eq!(hosts(all.variables("shop", true).await), ["KUBERNETES_SERVICE_HOST", "SIX_SERVICE_HOST"]);
        assert_eq!(hosts(all.variables("shop", false).await), ["KUBERNETES_SERVICE_HOST"]);
        let six = all.variables("shop", true).await;
        assert!(six.contains(&("SIX_PORT".into(), "tcp://[fd00::1]:443".into())), "{six:?}");
    }
}
