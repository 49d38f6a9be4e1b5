//! `spec.provider.external`, and the members of providers that a program brings along.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A provider of the program's own, configured without the API server knowing its fields.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct ExternalConfig {
    /// The name that the program registered it under. It cannot change.
    #[schemars(length(max = 32), regex(pattern = "^[a-z][a-z0-9]*$"))]
    pub name: String,
    /// The provider's configuration, which it checks itself.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(schema_with = "free_form")]
    pub config: Map<String, Value>,
}

fn free_form(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    crate::api::virtual_node::schema(serde_json::json!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
    }))
}

/// The name of a provider type that a program brought along.
///
/// Each is kept once for the life of the process, so that a type is as cheap to copy as those of this crate. There are
/// only as many as CustomResourceDefinitions admit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnType(&'static str);

impl OwnType {
    /// The type of this name.
    pub fn new(name: &str) -> Self {
        static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(name) {
            return Self(known);
        }
        let kept: &'static str = Box::leak(name.into());
        names.insert(kept);
        Self(kept)
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

/// What own types cannot be called: words of `spec.provider`, and those that CEL keeps for itself.
const RESERVED: [&str; 33] = [
    "mock",
    "process",
    "docker",
    "web",
    "grpc",
    "ssh",
    "external",
    "type",
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
    "int",
    "string",
    "bool",
    "self",
];

/// Whether a provider of a program's own can have this name: it becomes a field, a word in rules, a label's value.
pub fn is_own_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|c| c.is_ascii_lowercase());
    let all = name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    first && all && name.len() <= 32 && !RESERVED.contains(&name)
}
