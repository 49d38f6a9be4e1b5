//! From a VirtualNode's `spec.provider` to a running provider.
//!
//! ```text
//! spec.provider.type ──▶ Registry ──▶ factory of that type ──▶ Arc<dyn Provider>
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use super::mock::MockFactory;
use super::process::ProcessFactory;
use super::{Capabilities, Provider, ProviderContext, ProviderError, Result};
use crate::api::{ProviderSpec, ProviderType};

/// Makes providers of one type.
///
/// Called again for a node that exists when its configuration changed: the new provider takes over the
/// pods of the old one, which is dropped afterwards.
pub trait Factory: Send + Sync + 'static {
    /// A provider for one node. Does no lasting work before the provider is called; `Invalid` when the
    /// configuration or the credentials cannot be right.
    fn build(&self, spec: &ProviderSpec, context: ProviderContext) -> Result<Arc<dyn Provider>>;

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

/// The provider types that a program knows.
pub struct Registry(RwLock<BTreeMap<String, Arc<dyn Factory>>>);

impl Default for Registry {
    /// The types of this crate.
    fn default() -> Self {
        let registry = Self::empty();
        registry.register(ProviderType::Mock.as_str(), MockFactory::default());
        registry.register(ProviderType::Process.as_str(), ProcessFactory::forbidden());
        registry
    }
}

impl Registry {
    /// Knows no type.
    pub fn empty() -> Self {
        Self(RwLock::default())
    }

    /// Adds a type, or replaces one.
    pub fn register(&self, kind: &str, factory: impl Factory) {
        let mut types = self.0.write().unwrap_or_else(PoisonError::into_inner);
        types.insert(kind.to_owned(), Arc::new(factory));
    }

    /// What the providers of each type can do, as far as they say.
    pub fn capabilities(&self) -> BTreeMap<String, Capabilities> {
        let types = self.0.read().unwrap_or_else(PoisonError::into_inner);
        types.iter().filter_map(|(kind, factory)| Some((kind.clone(), factory.capabilities()?))).collect()
    }

    /// A provider as `spec` describes it. Must be called within a tokio runtime.
    pub fn build(&self, spec: &ProviderSpec, context: ProviderContext) -> Result<Arc<dyn Provider>> {
        let kind = spec.kind.as_str();
        let factory = self.0.read().unwrap_or_else(PoisonError::into_inner).get(kind).cloned();
        match factory {
            Some(factory) => factory.build(spec, context),
            None => Err(ProviderError::Invalid {
                field: "spec.provider.type".into(),
                message: format!("this program has no provider of type {kind:?}"),
            }),
        }
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
