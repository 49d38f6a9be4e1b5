//! Providers that a program brings along: a factory with a typed configuration, for the
//! [`Registry`](super::registry::Registry).
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use vnode::provider::{self, Capabilities, External, PodObservation, PodRef, Provider, ProviderContext, ResolvedPod};
//! #[derive(serde::Deserialize, schemars::JsonSchema)]
//! #[serde(rename_all = "camelCase", deny_unknown_fields)]
//! struct ToyConfig {
//!     /// Where the toys are.
//!     room: String,
//! }
//!
//! struct Toys;
//! # #[async_trait::async_trait]
//! # impl Provider for Toys {
//! #   fn capabilities(&self) -> Capabilities { Capabilities::default() }
//! #   async fn create_pod(&self, _: &ResolvedPod) -> provider::Result<()> { Ok(()) }
//! #   async fn stop_pod(&self, _: &PodRef, _: std::time::Duration) -> provider::Result<()> { Ok(()) }
//! #   async fn remove_pod(&self, _: &PodRef) -> provider::Result<()> { Ok(()) }
//! #   async fn get_pod(&self, _: &PodRef) -> provider::Result<PodObservation> { unreachable!() }
//! #   async fn list_pods(&self) -> provider::Result<Vec<PodObservation>> { Ok(vec![]) }
//! #   async fn ping(&self) -> provider::Result<()> { Ok(()) }
//! # }
//!
//! fn main() -> std::process::ExitCode {
//!     let toys = External::new(|config: ToyConfig, context| Ok(Arc::new(Toys))).with_schema::<ToyConfig>();
//!     vnode::Program::new().provider("toy", toys).main()
//! }
//! ```

use std::sync::Arc;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use kube::core::schema::{OptionalEnum, OptionalIntOrString, StructuralSchemaRewriter};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use schemars::transform::AddNullable;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::registry::Factory;
use super::{Capabilities, Provider, ProviderContext, ProviderError, Result};
use crate::api::{ProviderSpec, ProviderType};

type Build = dyn Fn(&Map<String, Value>, &str, ProviderContext) -> Result<Arc<dyn Provider>> + Send + Sync;

/// Makes providers of a type that a program brings along, each from its configuration.
pub struct External {
    build: Box<Build>,
    schema: Option<Box<JSONSchemaProps>>,
    pinned: bool,
    capabilities: Option<Capabilities>,
}

impl External {
    /// A type whose providers `build` makes. What a VirtualNode says is read into `C`; where that fails, the node's
    /// condition names the field. `build` does no lasting work, and is called again when the configuration changes.
    pub fn new<C, F>(build: F) -> Self
    where
        C: DeserializeOwned,
        F: Fn(C, ProviderContext) -> Result<Arc<dyn Provider>> + Send + Sync + 'static,
    {
        let build = move |config: &Map<String, Value>, path: &str, context| build(read(config, path)?, context);
        Self { build: Box::new(build), schema: None, pinned: false, capabilities: None }
    }

    /// Lets the CustomResourceDefinition have the configuration as a member of `spec.provider`: users write
    /// `type: <name>`, the API server checks the fields and `kubectl explain` shows their descriptions.
    pub fn with_schema<C: JsonSchema>(mut self) -> Self {
        self.schema = schema::<C>().map(Box::new);
        self
    }

    /// What providers of this type have lives on the machine of the process: no other replica can run their nodes.
    pub fn pinned(mut self) -> Self {
        self.pinned = true;
        self
    }

    /// What providers of this type can do at most, for documentation.
    pub fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = Some(capabilities);
        self
    }

    /// The schema of the configuration, if it was given.
    pub(super) fn schema(&self) -> Option<&JSONSchemaProps> {
        self.schema.as_deref()
    }
}

impl Factory for External {
    fn build(&self, spec: &ProviderSpec, context: ProviderContext) -> Result<Arc<dyn Provider>> {
        let none = Map::new();
        match (spec.kind, &spec.external) {
            (ProviderType::External, external) => {
                let config = external.as_ref().map_or(&none, |e| &e.config);
                (self.build)(config, "spec.provider.external.config", context)
            }
            (kind, _) => {
                let config = spec.own.get(kind.as_str()).and_then(Value::as_object).unwrap_or(&none);
                (self.build)(config, &format!("spec.provider.{}", kind.as_str()), context)
            }
        }
    }

    fn is_pinned(&self, _: &ProviderSpec) -> bool {
        self.pinned
    }

    fn capabilities(&self) -> Option<Capabilities> {
        self.capabilities
    }
}

/// The configuration, or what is wrong with it and where.
fn read<C: DeserializeOwned>(config: &Map<String, Value>, path: &str) -> Result<C> {
    let value = Value::Object(config.clone());
    serde_path_to_error::deserialize(&value).map_err(|error| {
        let within = error.path().to_string();
        let field = if within == "." { path.to_owned() } else { format!("{path}.{within}") };
        ProviderError::Invalid { field, message: error.into_inner().to_string() }
    })
}

/// The schema of a type in the form that CustomResourceDefinitions take; `None` when it has no such form.
fn schema<C: JsonSchema>() -> Option<JSONSchemaProps> {
    let settings = SchemaSettings::openapi3().with(|s| {
        s.inline_subschemas = true;
        s.meta_schema = None;
    });
    let generator = settings
        .with_transform(AddNullable::default())
        .with_transform(StructuralSchemaRewriter)
        .with_transform(OptionalEnum)
        .with_transform(OptionalIntOrString)
        .into_generator();
    let schema = serde_json::to_value(generator.into_root_schema_for::<C>()).ok()?;
    serde_json::from_value(schema).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::json;

    #[derive(Debug, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "read and forgotten")]
    struct Config {
        room: String,
        #[serde(default)]
        shelves: Vec<Shelf>,
    }

    #[derive(Debug, Deserialize, JsonSchema)]
    #[allow(dead_code, reason = "read and forgotten")]
    struct Shelf {
        height: u8,
    }

    #[test]
    fn what_is_wrong_with_a_configuration_is_told_with_the_path_of_the_field() {
        for (config, field, says) in [
            (json!({}), "spec.provider.toy", "missing field `room`"),
            (json!({"room": 1}), "spec.provider.toy.room", "invalid type"),
            (json!({"room": "a", "romo": 1}), "spec.provider.toy.romo", "unknown field `romo`"),
            (json!({"room": "a", "shelves": [{"height": 300}]}), "spec.provider.toy.shelves[0].height", "300"),
        ] {
            let config = config.as_object().unwrap();
            match read::<Config>(config, "spec.provider.toy") {
                Err(ProviderError::Invalid { field: found, message }) => {
                    assert_eq!(found, field);
                    assert!(message.contains(says), "{message}");
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(read::<Config>(json!({"room": "a"}).as_object().unwrap(), "p").is_ok());
    }

    #[test]
    fn a_schema_is_structural() {
        let schema = serde_json::to_value(schema::<Config>().unwrap()).unwrap();
        assert_eq!(schema["type"], "object");
        assert_eq!(schema["required"], json!(["room"]));
        assert_eq!(schema.pointer("/properties/shelves/items/properties/height/type"), Some(&json!("integer")));
        assert!(!schema.to_string().contains("$ref"));
    }
}
