//! From a VirtualNode's `spec.provider` to a running provider.
//!
//! ```text
//! spec.provider.type ──▶ Registry ──▶ factory of that type ──▶ Arc<dyn Provider>
//!   external: its name ──▶          ──▶ what the program brought along
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, PoisonError, RwLock, RwLockReadGuard};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;

use super::external::External;
use super::mock::MockFactory;
use super::process::ProcessFactory;
use super::web::WebFactory;
use super::{Capabilities, Provider, ProviderContext, ProviderError, Result};
use crate::api::provider::is_own_name;
use crate::api::{ProviderSpec, ProviderType};

/// Makes providers of one type.
///
/// Called again for a node that exists when its configuration changed: the new provider takes over the
/// pods of the old one, which is dropped afterwards.
pub trait Factory: Send + Sync + 'static {
    /// A provider for one node. Does no lasting work before the provider is called; `Invalid` when the
    /// configuration or the credentials cannot be right.
    fn build(&self, spec: &ProviderSpec, context: ProviderContext) -> Result<Arc<dyn Provider>>;

    /// What the provider has lives on the machine of this process, so that no other replica can run the node.
    fn is_pinned(&self, _spec: &ProviderSpec) -> bool {
        false
    }

    /// What providers of this type can do at most, for the documentation; `None` leaves the type out.
    fn capabilities(&self) -> Option<Capabilities> {
        None
    }
}

impl<F> Factory for F
where
    F: Fn(&ProviderSpec, ProviderContext) -> Result<Arc<dyn Provider>> + Send + Sync + 'static,
{
    fn build(&self, spec: &ProviderSpec, context: ProviderContext) -> Result<Arc<dyn Provider>> {
        self(spec, context)
    }
}

#[derive(Default)]
struct Types {
    /// By the word in `spec.provider.type`.
    built_in: BTreeMap<String, Arc<dyn Factory>>,
    /// Those that a program brings along, by name.
    external: BTreeMap<String, Arc<External>>,
}

/// The provider types that a program knows.
pub struct Registry(RwLock<Types>);

/// A provider of a program's own cannot have this name.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error(
    "a provider cannot be called {0:?}: a name is a word of at most 32 lower case letters and digits, and neither one \
     of spec.provider nor one of CEL"
)]
pub struct NameError(pub String);

impl Default for Registry {
    /// The types of this crate.
    fn default() -> Self {
        let registry = Self::empty();
        registry.register(ProviderType::Mock.as_str(), MockFactory::default());
        registry.register(ProviderType::Process.as_str(), ProcessFactory::forbidden());
        #[cfg(feature = "docker")]
        registry.register(ProviderType::Docker.as_str(), super::docker::DockerFactory::without_state());
        #[cfg(feature = "grpc")]
        registry.register(ProviderType::Grpc.as_str(), super::grpc::GrpcFactory::default());
        registry.register(ProviderType::Web.as_str(), WebFactory::default());
        #[cfg(feature = "ssh")]
        registry.register(ProviderType::Ssh.as_str(), super::ssh::SshFactory::without_state());
        registry
    }
}

impl Registry {
    /// Knows no type.
    pub fn empty() -> Self {
        Self(RwLock::default())
    }

    fn types(&self) -> RwLockReadGuard<'_, Types> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a type, or replaces one.
    pub fn register(&self, kind: &str, factory: impl Factory) {
        let mut types = self.0.write().unwrap_or_else(PoisonError::into_inner);
        types.built_in.insert(kind.to_owned(), Arc::new(factory));
    }

    /// Adds a type that the program brings along, for `type: external` and, when it has a schema, `type: <name>`.
    pub fn register_external(&self, name: &str, external: External) -> Result<(), NameError> {
        if !is_own_name(name) {
            return Err(NameError(name.to_owned()));
        }
        let mut types = self.0.write().unwrap_or_else(PoisonError::into_inner);
        types.external.insert(name.to_owned(), Arc::new(external));
        Ok(())
    }

    /// What the CustomResourceDefinitions have in `spec.provider` beside the types of this crate.
    pub fn members(&self) -> BTreeMap<String, JSONSchemaProps> {
        let types = self.types();
        types.external.iter().filter_map(|(name, external)| Some((name.clone(), external.schema()?.clone()))).collect()
    }

    /// What the providers of each type can do, as far as they say.
    pub fn capabilities(&self) -> BTreeMap<String, Capabilities> {
        let types = self.types();
        let own = types.external.iter().filter_map(|(name, external)| Some((name.clone(), external.capabilities()?)));
        let all = types.built_in.iter().filter_map(|(kind, factory)| Some((kind.clone(), factory.capabilities()?)));
        all.chain(own).collect()
    }

    fn find(&self, spec: &ProviderSpec) -> Result<Arc<dyn Factory>> {
        let types = self.types();
        let own = match spec.kind {
            ProviderType::External | ProviderType::Own(_) => types.external.get(spec.name()),
            kind => return types.built_in.get(kind.as_str()).cloned().ok_or_else(|| unknown(&types, spec)),
        };
        own.map(|external| external.clone() as Arc<dyn Factory>).ok_or_else(|| unknown(&types, spec))
    }

    /// `Invalid` when the program has no such provider, with those that it has.
    pub fn check(&self, spec: &ProviderSpec) -> Result<()> {
        self.find(spec).map(drop)
    }

    /// Whether a node with such a provider stays with the replica that has it.
    pub fn is_pinned(&self, spec: &ProviderSpec) -> bool {
        self.find(spec).is_ok_and(|factory| factory.is_pinned(spec))
    }

    /// A provider as `spec` describes it. Must be called within a tokio runtime.
    pub fn build(&self, spec: &ProviderSpec, context: ProviderContext) -> Result<Arc<dyn Provider>> {
        self.find(spec)?.build(spec, context)
    }
}

fn unknown(types: &Types, spec: &ProviderSpec) -> ProviderError {
    let list = |names: Vec<&String>| match names.is_empty() {
        true => "none".to_owned(),
        false => names.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", "),
    };
    let own = list(types.external.keys().collect());
    let name = spec.name();
    if spec.kind == ProviderType::External {
        let message = format!("this program has no provider called {name:?}; of its own it has: {own}");
        return ProviderError::Invalid { field: "spec.provider.external.name".into(), message };
    }
    let built_in = list(types.built_in.keys().collect());
    ProviderError::Invalid {
        field: "spec.provider.type".into(),
        message: format!("this program has no provider of type {name:?}; it has: {built_in}; of its own: {own}"),
    }
}

/// The registry of this process.
pub fn global() -> &'static Registry {
    static GLOBAL: LazyLock<Registry> = LazyLock::new(Registry::default);
    &GLOBAL
}

/// A provider from the registry of this process. Must be called within a tokio runtime.
pub fn build(spec: &ProviderSpec, context: ProviderContext) -> Result<Arc<dyn Provider>> {
    global().build(spec, context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: serde_json::Value) -> ProviderSpec {
        serde_json::from_value(value).unwrap()
    }

    fn toys() -> External {
        #[derive(serde::Deserialize, schemars::JsonSchema)]
        struct Config {}
        External::new(|_: Config, _| Err(ProviderError::Unsupported("toys"))).with_schema::<Config>().pinned()
    }

    #[test]
    fn an_unknown_provider_is_refused_with_those_that_are_known() {
        let registry = Registry::default();
        registry.register_external("toy", toys()).unwrap();
        for (value, says) in [
            (json!({"type": "external", "external": {"name": "tyo"}}), "of its own it has: toy"),
            (json!({"type": "external", "external": {"name": "mock"}}), "of its own it has: toy"),
            (json!({"type": "tyo", "tyo": {}}), "; of its own: toy"),
        ] {
            let error = registry.check(&spec(value)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        for value in [json!({"type": "toy", "toy": {}}), json!({"type": "external", "external": {"name": "toy"}})] {
            registry.check(&spec(value.clone())).unwrap();
            assert!(registry.is_pinned(&spec(value)));
        }
        assert_eq!(registry.members().keys().collect::<Vec<_>>(), ["toy"]);
        assert_eq!(registry.register_external("mock", toys()), Err(NameError("mock".into())));
    }
}
