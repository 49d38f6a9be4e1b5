//! Environment variables, command, arguments and sub-paths of a pod's containers, resolved.
//!
//! Order as in kubelet: services, `envFrom`, then `env`; a later entry of a name replaces an earlier one, and
//! `$(NAME)` refers to what comes before it. Only ConfigMaps and Secrets that a pod names are read.
//!
//! | module | what it is |
//! |---|---|
//! | [`fields`] | pure: `fieldRef` and `resourceFieldRef` |
//! | [`mod@expand`] | pure: `$(VAR)` |

pub(super) mod expand;
pub(super) mod fields;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, EnvVarSource};

use super::objects::{Kind, Object};
use super::resolve::{Gathered, Remark, Resolver};
use crate::provider::{EnvVar, PodFeature, ResolvedContainer, ResolvedMount};
use expand::expand;

/// The containers that can start, and why others cannot, by name.
pub(super) type Containers = (BTreeMap<String, ResolvedContainer>, BTreeMap<String, String>);

impl Resolver<'_> {
    /// Resolves every container, ephemeral ones included.
    pub(super) async fn containers(&self, gathered: &mut Gathered) -> Containers {
        let (mut resolved, mut failed) = Containers::default();
        let Some(spec) = &self.pod.spec else { return (resolved, failed) };
        let ephemeral: Vec<Container> = spec.ephemeral_containers.iter().flatten().map(plain).collect();
        let links = spec.enable_service_links.unwrap_or(true);
        let services = match self.capabilities.pod.has(PodFeature::ServiceLinks) {
            true => self.sources.services.variables(self.namespace(), links).await,
            // A thousand services are ten thousand variables, for nobody.
            false => Vec::new(),
        };
        for container in spec.init_containers.iter().flatten().chain(&spec.containers).chain(&ephemeral) {
            match self.container(container, &services, gathered).await {
                Ok(done) => drop(resolved.insert(container.name.clone(), done)),
                Err(message) => drop(failed.insert(container.name.clone(), message)),
            }
        }
        gathered.remarks.dedup();
        (resolved, failed)
    }

    async fn container(
        &self,
        container: &Container,
        services: &[(String, String)],
        gathered: &mut Gathered,
    ) -> Result<ResolvedContainer, String> {
        let env = self.env(container, services, gathered).await?;
        let expand_all = |words: &Option<Vec<String>>| {
            words.iter().flatten().map(|word| expand(word, &env).text).collect::<Vec<_>>()
        };
        let (command, args) = (expand_all(&container.command), expand_all(&container.args));
        let mut mounts = Vec::new();
        for mount in container.volume_mounts.iter().flatten() {
            let expression = mount.sub_path_expr.as_deref().filter(|e| !e.is_empty());
            let sub_path = match expression {
                Some(expression) => {
                    let expanded = expand(expression, &env);
                    if let Some(name) = expanded.unknown {
                        return Err(format!(
                            "failed to prepare subPath for volumeMount {:?} of container {:?}: missing value for {name:?}",
                            mount.name, container.name
                        ));
                    }
                    Some(expanded.text)
                }
                None => mount.sub_path.clone().filter(|p| !p.is_empty()),
            };
            if sub_path.as_deref().is_some_and(|p| !super::volumes::is_inside(p)) {
                return Err(format!(
                    "failed to prepare subPath for volumeMount {:?} of container {:?}: it must be a relative path without '..'",
                    mount.name, container.name
                ));
            }
            mounts.push(ResolvedMount {
                volume: mount.name.clone(),
                path: mount.mount_path.clone(),
                sub_path,
                read_only: mount.read_only == Some(true),
            });
        }
        let texts = env.iter().map(|v| &v.value).chain(&command).chain(&args);
        let wants_pod_ips = texts.chain(mounts.iter().filter_map(|m| m.sub_path.as_ref())).any(|t| t.contains('\0'));
        Ok(ResolvedContainer { env, command, args, mounts, wants_pod_ips })
    }

    async fn env(
        &self,
        container: &Container,
        services: &[(String, String)],
        gathered: &mut Gathered,
    ) -> Result<Vec<EnvVar>, String> {
        let plain =
            |(name, value): &(String, String)| EnvVar { name: name.clone(), value: value.clone(), secret: false };
        let mut env: Vec<EnvVar> = services.iter().map(plain).collect();
        for source in container.env_from.iter().flatten() {
            let prefix = source.prefix.as_deref().unwrap_or_default();
            let (kind, name, optional) = match (&source.config_map_ref, &source.secret_ref) {
                (Some(r), _) => (Kind::ConfigMap, &r.name, r.optional),
                (None, Some(r)) => (Kind::Secret, &r.name, r.optional),
                (None, None) => continue,
            };
            let Some(object) = self.named(kind, name, optional == Some(true), gathered).await? else { continue };
            let mut invalid = Vec::new();
            for (key, value) in &object.data {
                let name = format!("{prefix}{key}");
                if !is_env_name(&name) {
                    invalid.push(name);
                    continue;
                }
                let value = String::from_utf8_lossy(value).into_owned();
                put(&mut env, EnvVar { name, value, secret: kind == Kind::Secret });
            }
            if !invalid.is_empty() {
                let word = if kind == Kind::Secret { "secret" } else { "configMap" };
                gathered.remarks.push(Remark {
                    reason: "InvalidEnvironmentVariableNames",
                    message: format!(
                        "Keys [{}] from the EnvFrom {word} {}/{name} were skipped since they are considered invalid environment variable names.",
                        invalid.join(", "),
                        self.namespace()
                    ),
                });
            }
        }
        for var in container.env.iter().flatten() {
            let (value, secret) = match (&var.value, &var.value_from) {
                (Some(value), _) if !value.is_empty() => {
                    let expanded = expand(value, &env);
                    (expanded.text, expanded.secret)
                }
                (_, Some(source)) => match self.value(container, source, gathered).await? {
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
        gathered: &mut Gathered,
    ) -> Result<Option<(String, bool)>, String> {
        if let Some(field) = &source.field_ref {
            let late = self.capabilities.pod.has(PodFeature::PodIpInEnvironment);
            let value = fields::of_environment(self.pod, self.host_ip, &field.field_path, late);
            return match value {
                Some(value) => Ok(Some((value, false))),
                None => Err(format!("unsupported fieldPath: {}", field.field_path)),
            };
        }
        if let Some(field) = &source.resource_field_ref {
            return match fields::of_resources(self.pod, Some(container), &self.facts.allocatable, field) {
                Some(value) => Ok(Some((value, false))),
                None => Err(format!("unsupported container resource : {}", field.resource)),
            };
        }
        let (kind, name, key, optional) = match (&source.config_map_key_ref, &source.secret_key_ref) {
            (Some(r), _) => (Kind::ConfigMap, &r.name, &r.key, r.optional == Some(true)),
            (None, Some(r)) => (Kind::Secret, &r.name, &r.key, r.optional == Some(true)),
            (None, None) if source.file_key_ref.is_some() => {
                return Err("fileKeyRef is not supported on virtual nodes".into());
            }
            (None, None) => return Err("a valueFrom has a source that is not supported".into()),
        };
        let Some(object) = self.named(kind, name, optional, gathered).await? else { return Ok(None) };
        match object.data.get(key) {
            Some(value) => Ok(Some((String::from_utf8_lossy(value).into_owned(), kind == Kind::Secret))),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {key} in {} {}/{name}", kind.word(), self.namespace())),
        }
    }

    /// The object, or `None` when it is missing and may be.
    async fn named(
        &self,
        kind: Kind,
        name: &str,
        optional: bool,
        gathered: &mut Gathered,
    ) -> Result<Option<Arc<Object>>, String> {
        match self.object(kind, name, gathered).await? {
            None if !optional => Err(format!("{} {name:?} not found", kind.lower())),
            found => Ok(found),
        }
    }
}

/// An ephemeral container as far as resolving it goes.
fn plain(c: &k8s_openapi::api::core::v1::EphemeralContainer) -> Container {
    Container {
        name: c.name.clone(),
        env: c.env.clone(),
        env_from: c.env_from.clone(),
        command: c.command.clone(),
        args: c.args.clone(),
        resources: c.resources.clone(),
        volume_mounts: c.volume_mounts.clone(),
        ..Container::default()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_variable_replaces_an_earlier_one() {
        let var = |name: &str, value: &str, secret: bool| EnvVar { name: name.into(), value: value.into(), secret };
        let mut env = vec![var("A", "1", true), var("B", "2", false)];
        put(&mut env, var("A", "3", false));
        assert_eq!(env, [var("B", "2", false), var("A", "3", false)]);
    }

    #[test]
    fn names_are_printable_and_have_no_equals_sign() {
        for (name, want) in [("A", true), ("a.b-c/d e", true), ("1", true), ("", false), ("A=B", false), ("é", false)]
        {
            assert_eq!(is_env_name(name), want, "{name}");
        }
    }
}
