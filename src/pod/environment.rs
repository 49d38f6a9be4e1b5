//! Environment variables, command and arguments of a pod's containers, resolved.
//!
//! Order as in kubelet: `envFrom`, then `env`; a later entry of a name replaces an earlier one, and
//! `$(NAME)` refers to what comes before it. Variables for the services of the namespace are not made.
//! Only ConfigMaps and Secrets that a pod names are read, one by one; each is kept for a few seconds, so
//! that a thousand pods of one Deployment read it once.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, ResourceFieldSelector, Secret};
use kube::Api;

use crate::provider::{EnvVar, ResolvedContainer};

const KEPT_FOR: Duration = Duration::from_secs(5);
/// Bytes of ConfigMaps and Secrets that are kept.
const KEPT_BYTES: u64 = 16 << 20;
const DEADLINE: Duration = Duration::from_secs(10);

type Data = Arc<BTreeMap<String, Bytes>>;

/// Why there is no data. Never kept: what is missing now may be there at the next try.
#[derive(Clone, Debug)]
enum Lack {
    Missing,
    Failed(String),
}

/// Reads ConfigMaps and Secrets by name.
pub(crate) struct ObjectCache {
    client: kube::Client,
    kept: moka::future::Cache<(Kind, String, String), Data>,
}

/// What a variable's value may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    ConfigMap,
    Secret,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }
}

impl ObjectCache {
    pub fn new(client: kube::Client) -> Self {
        let weigh = |key: &(Kind, String, String), data: &Data| {
            let bytes: usize = data.iter().map(|(k, v)| k.len() + v.len() + 64).sum();
            u32::try_from(bytes + key.1.len() + key.2.len() + 128).unwrap_or(u32::MAX)
        };
        let kept =
            moka::future::Cache::builder().time_to_live(KEPT_FOR).max_capacity(KEPT_BYTES).weigher(weigh).build();
        Self { client, kept }
    }

    /// The object's data; `None` when there is no such object.
    async fn data(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Data>, String> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        let read = async {
            match tokio::time::timeout(DEADLINE, self.read(kind, namespace, name)).await {
                Ok(Ok(data)) => data.ok_or(Lack::Missing),
                Ok(Err(kube::Error::Api(status))) => Err(Lack::Failed(status.message)),
                Ok(Err(other)) => Err(Lack::Failed(other.to_string())),
                Err(_) => Err(Lack::Failed("the API server did not answer in time".into())),
            }
        };
        match self.kept.try_get_with(key, read).await {
            Ok(data) => Ok(Some(data)),
            Err(lack) => match &*lack {
                Lack::Missing => Ok(None),
                Lack::Failed(error) => Err(error.clone()),
            },
        }
    }

    async fn read(&self, kind: Kind, namespace: &str, name: &str) -> kube::Result<Option<Data>> {
        Ok(match kind {
            Kind::ConfigMap => {
                let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
                api.get_opt(name).await?.map(|object| {
                    let text = object.data.unwrap_or_default().into_iter().map(|(k, v)| (k, Bytes::from(v)));
                    let binary = object.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, Bytes::from(v.0)));
                    Arc::new(text.chain(binary).collect())
                })
            }
            Kind::Secret => {
                let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
                api.get_opt(name).await?.map(|object| {
                    Arc::new(object.data.unwrap_or_default().into_iter().map(|(k, v)| (k, Bytes::from(v.0))).collect())
                })
            }
        })
    }
}

/// Something to tell at the pod: reason and message of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remark {
    pub reason: String,
    pub message: String,
}

/// What stands behind the variables.
pub(crate) struct Resolver<'a> {
    pub objects: &'a ObjectCache,
    pub pod: &'a Pod,
    pub host_ip: IpAddr,
}

/// The resolved containers, with remarks about what was left out.
pub(crate) type Resolved = (BTreeMap<String, ResolvedContainer>, Vec<Remark>);

impl Resolver<'_> {
    /// Resolves every container. Fails with the first thing that is missing and not optional.
    pub async fn resolve(&self) -> Result<Resolved, Remark> {
        let mut remarks = Vec::new();
        let mut containers = BTreeMap::new();
        let Some(spec) = &self.pod.spec else { return Ok((containers, remarks)) };
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            let env = self.env(container, &mut remarks).await?;
            let expand_all = |words: &Option<Vec<String>>| {
                words.iter().flatten().map(|word| expand(word, &env).0).collect::<Vec<_>>()
            };
            let (command, args) = (expand_all(&container.command), expand_all(&container.args));
            containers.insert(
                container.name.clone(),
                ResolvedContainer { env, command, args, ..ResolvedContainer::default() },
            );
        }
        remarks.dedup();
        Ok((containers, remarks))
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    async fn env(&self, container: &Container, remarks: &mut Vec<Remark>) -> Result<Vec<EnvVar>, Remark> {
        let mut env = Vec::new();
        for source in container.env_from.iter().flatten() {
            let prefix = source.prefix.as_deref().unwrap_or_default();
            let (kind, name, optional) = match (&source.config_map_ref, &source.secret_ref) {
                (Some(r), _) => (Kind::ConfigMap, &r.name, r.optional),
                (None, Some(r)) => (Kind::Secret, &r.name, r.optional),
                (None, None) => continue,
            };
            let Some(data) = self.object(kind, name, optional == Some(true), remarks).await? else { continue };
            let mut invalid = Vec::new();
            for (key, value) in data.iter() {
                let name = format!("{prefix}{key}");
                if !is_env_name(&name) {
                    invalid.push(name);
                    continue;
                }
                let value = String::from_utf8_lossy(value).into_owned();
                put(&mut env, EnvVar { name, value, secret: kind == Kind::Secret });
            }
            if !invalid.is_empty() {
                remarks.push(Remark {
                    reason: "InvalidEnvironmentVariableNames".into(),
                    message: format!(
                        "keys [{}] of {} {}/{name} are not names of environment variables and were left out",
                        invalid.join(", "),
                        kind.word(),
                        self.namespace()
                    ),
                });
            }
        }
        for var in container.env.iter().flatten() {
            let (value, secret) = match (&var.value, &var.value_from) {
                (Some(value), _) if !value.is_empty() => expand(value, &env),
                (_, Some(source)) => match self.value(container, source, remarks).await? {
                    Some(value) => value,
                    None => continue,
                },
                _ => (String::new(), false),
            };
            put(&mut env, EnvVar { name: var.name.clone(), value, secret });
        }
        Ok(env)
    }

    async fn value(
        &self,
        container: &Container,
        source: &EnvVarSource,
        remarks: &mut Vec<Remark>,
    ) -> Result<Option<(String, bool)>, Remark> {
        if let Some(field) = &source.field_ref {
            return match self.field(&field.field_path) {
                Some(value) => Ok(Some((value, false))),
                None => Err(Remark {
                    reason: "InvalidEnvironmentFieldRef".into(),
                    message: format!(
                        "fieldPath {:?} of container {:?} is not supported",
                        field.field_path, container.name
                    ),
                }),
            };
        }
        if let Some(field) = &source.resource_field_ref {
            return match self.resource(container, field) {
                Some(value) => Ok(Some((value, false))),
                None => Err(Remark {
                    reason: "InvalidEnvironmentResourceFieldRef".into(),
                    message: format!(
                        "resource {:?} of container {:?} is not supported",
                        field.resource, container.name
                    ),
                }),
            };
        }
        let (kind, name, key, optional) = match (&source.config_map_key_ref, &source.secret_key_ref) {
            (Some(r), _) => (Kind::ConfigMap, &r.name, &r.key, r.optional == Some(true)),
            (None, Some(r)) => (Kind::Secret, &r.name, &r.key, r.optional == Some(true)),
            (None, None) => {
                return Err(Remark {
                    reason: "InvalidEnvironmentSource".into(),
                    message: format!(
                        "a valueFrom of container {:?} has a source that is not supported",
                        container.name
                    ),
                });
            }
        };
        let Some(data) = self.object(kind, name, optional, remarks).await? else { return Ok(None) };
        if let Some(value) = data.get(key) {
            return Ok(Some((String::from_utf8_lossy(value).into_owned(), kind == Kind::Secret)));
        }
        let remark = |necessity: &str| Remark {
            reason: format!("{necessity}{}KeyNotFound", kind.word()),
            message: format!("{} {}/{name} has no key {key:?}", kind.word(), self.namespace()),
        };
        if !optional {
            return Err(remark("Mandatory"));
        }
        remarks.push(remark("Optional"));
        Ok(None)
    }

    async fn object(
        &self,
        kind: Kind,
        name: &str,
        optional: bool,
        remarks: &mut Vec<Remark>,
    ) -> Result<Option<Data>, Remark> {
        let remark = |reason: String, what: String| Remark {
            reason,
            message: format!("{} {}/{name} {what}", kind.word(), self.namespace()),
        };
        match self.objects.data(kind, self.namespace(), name).await {
            Ok(Some(data)) => Ok(Some(data)),
            Ok(None) if optional => {
                remarks.push(remark(format!("Optional{}NotFound", kind.word()), "does not exist".into()));
                Ok(None)
            }
            Ok(None) => Err(remark(format!("Mandatory{}NotFound", kind.word()), "does not exist".into())),
            Err(error) => {
                let necessity = if optional { "Optional" } else { "Mandatory" };
                Err(remark(format!("FailedToRead{necessity}{}", kind.word()), format!("could not be read: {error}")))
            }
        }
    }

    /// `fieldRef`, as far as it is known before a pod starts: its own address is not.
    fn field(&self, path: &str) -> Option<String> {
        let (meta, spec) = (&self.pod.metadata, self.pod.spec.as_ref());
        let status = self.pod.status.as_ref();
        let of = |map: &Option<BTreeMap<String, String>>, key: &str| {
            map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default()
        };
        let subscript = |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
        if let Some(key) = subscript("metadata.labels") {
            return Some(of(&meta.labels, key));
        }
        if let Some(key) = subscript("metadata.annotations") {
            return Some(of(&meta.annotations, key));
        }
        let host = || self.host_ip.to_string();
        Some(match path {
            "metadata.name" => meta.name.clone().unwrap_or_default(),
            "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
            "metadata.uid" => meta.uid.clone().unwrap_or_default(),
            "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
            "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
            "status.hostIP" | "status.hostIPs" => host(),
            "status.podIP" => status.and_then(|s| s.pod_ip.clone()).unwrap_or_default(),
            "status.podIPs" => {
                let ips = status.and_then(|s| s.pod_ips.as_deref()).unwrap_or_default();
                ips.iter().map(|ip| ip.ip.as_str()).collect::<Vec<_>>().join(",")
            }
            _ => return None,
        })
    }

    /// `resourceFieldRef`. A limit that is not set is the request; the node's size is not a limit here.
    fn resource(&self, container: &Container, field: &ResourceFieldSelector) -> Option<String> {
        let spec = self.pod.spec.as_ref()?;
        let of = match field.container_name.as_deref().filter(|n| !n.is_empty()) {
            Some(name) => {
                spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name)?
            }
            None => container,
        };
        let (group, name) = field.resource.split_once('.')?;
        let (limits, requests) = match &of.resources {
            Some(r) => (r.limits.as_ref(), r.requests.as_ref()),
            None => (None, None),
        };
        let amount = match group {
            "limits" => limits.and_then(|l| l.get(name)).or_else(|| requests.and_then(|r| r.get(name))),
            "requests" => requests.and_then(|r| r.get(name)).or_else(|| limits.and_then(|l| l.get(name))),
            _ => return None,
        };
        let amount = amount.map_or(Some(0), |q| nano(&q.0))?;
        let divisor = field.divisor.as_ref().and_then(|q| nano(&q.0)).filter(|d| *d > 0).unwrap_or(1_000_000_000);
        Some(((amount + divisor - 1) / divisor).to_string())
    }
}

/// A quantity in billionths.
fn nano(quantity: &str) -> Option<i128> {
    let split = quantity.find(|c: char| !matches!(c, '0'..='9' | '.' | '-' | '+')).unwrap_or(quantity.len());
    let (number, suffix) = quantity.split_at(split);
    let factor: f64 = match suffix {
        "n" => 1.0,
        "u" => 1e3,
        "m" => 1e6,
        "" => 1e9,
        "k" => 1e12,
        "M" => 1e15,
        "G" => 1e18,
        "T" => 1e21,
        "P" => 1e24,
        "E" => 1e27,
        "Ki" => 1e9 * 1024.0,
        "Mi" => 1e9 * 1024f64.powi(2),
        "Gi" => 1e9 * 1024f64.powi(3),
        "Ti" => 1e9 * 1024f64.powi(4),
        "Pi" => 1e9 * 1024f64.powi(5),
        "Ei" => 1e9 * 1024f64.powi(6),
        exponent => 1e9 * 10f64.powi(exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    match number.parse::<i128>() {
        Ok(whole) => whole.checked_mul(factor as i128),
        Err(_) => Some((number.parse::<f64>().ok()? * factor) as i128),
    }
}

fn put(env: &mut Vec<EnvVar>, var: EnvVar) {
    env.retain(|v| v.name != var.name);
    env.push(var);
}

/// KEP-4369: any printable ASCII but `=`.
fn is_env_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=')
}

/// `$(NAME)` becomes the variable's value when there is one, `$$` becomes `$`. True when a secret is in it.
/// Kubernetes: `third_party/forked/golang/expansion`.
fn expand(text: &str, env: &[EnvVar]) -> (String, bool) {
    let (mut out, mut secret, mut rest) = (String::with_capacity(text.len()), false, text);
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match env.iter().find(|v| v.name == name) {
                Some(var) => {
                    out.push_str(&var.value);
                    secret |= var.secret;
                }
                None => out.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    (out, secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn var(name: &str, value: &str, secret: bool) -> EnvVar {
        EnvVar { name: name.into(), value: value.into(), secret }
    }

    #[test]
    fn references_are_expanded_as_kubernetes_does() {
        let env = [var("A", "1", false), var("S", "x", true)];
        let cases = [
            ("$(A)", "1", false),
            ("a$(A)b$(S)", "a1bx", true),
            ("$$(A)", "$(A)", false),
            ("$$$(A)", "$1", false),
            ("$(NONE)", "$(NONE)", false),
            ("$(A", "$(A", false),
            ("$A $", "$A $", false),
            ("", "", false),
        ];
        for (text, want, secret) in cases {
            assert_eq!(expand(text, &env), (want.to_owned(), secret), "{text}");
        }
    }

    #[test]
    fn quantities_are_read() {
        for (text, want) in
            [("1", 1e9), ("500m", 5e8), ("1.5", 1.5e9), ("2Ki", 2048e9), ("1e3", 1e12), ("1Gi", 1073741824e9)]
        {
            assert_eq!(nano(text), Some(want as i128), "{text}");
        }
        assert_eq!(nano("x"), None);
    }

    #[test]
    fn a_later_variable_replaces_an_earlier_one() {
        let mut env = vec![var("A", "1", true), var("B", "2", false)];
        put(&mut env, var("A", "3", false));
        assert_eq!(env, [var("B", "2", false), var("A", "3", false)]);
    }
}
