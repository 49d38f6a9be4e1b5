//! Schemas of kinds: what fields an object may have, of which types, and how its lists are merged.
//!
//! A [`Schema`] comes from [`mod@builtin`] (the typed API's own definitions, with the merge rules of `lists`) or from a
//! CustomResourceDefinition ([`Schema::from_crd`]). `parse` turns either into [`Node`]s; `fields` finds unknown
//! fields, prunes, defaults and checks types; `canonical` writes zeros as the API's own types do; `validate` and `rules` check the values of custom resources.

mod builtin;
mod canonical;
mod expression;
mod fields;
mod lists;
mod parse;
mod restore;
mod rules;
mod structural;
#[cfg(test)]
mod tests;
mod types;
mod validate;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

pub(crate) use builtin::{builtin, sources};

/// The schema of a value; cheap to clone and to walk.
#[derive(Clone, Debug)]
pub(crate) struct Schema(Link);

#[derive(Clone, Debug)]
enum Link {
    Own(Arc<Node>),
    /// One of the built-in definitions, by its place in their table: definitions refer to each other in circles.
    Definition(usize),
}

/// What a value is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Type {
    #[default]
    Any,
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    IntOrString,
}

/// How server-side apply merges a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum List {
    #[default]
    Atomic,
    Set,
    Map(Vec<Box<str>>),
}

/// How a strategic merge patch merges a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Strategy {
    #[default]
    Replace,
    /// A list of primitives, as a set.
    Merge,
    /// A list of objects, by this key.
    MergeBy(Box<str>),
}

/// One level of a schema.
#[derive(Debug, Default)]
struct Node {
    /// The definition's own name, as in `PodSpec`; empty for what is defined where it is used.
    name: Box<str>,
    kind: Type,
    format: Box<str>,
    fields: BTreeMap<Box<str>, Schema>,
    required: Vec<Box<str>>,
    items: Option<Schema>,
    additional: Option<Schema>,
    /// Unknown fields stay.
    preserve: bool,
    /// A whole object with `apiVersion`, `kind` and `metadata`.
    embedded: bool,
    nullable: bool,
    list: List,
    strategy: Strategy,
    atomic: bool,
    default: Option<Value>,
    /// A resource of a CustomResourceDefinition, not a built-in type: null means something there.
    custom: bool,
    source: Value,
    rules: Option<rules::Rules>,
    /// How zeros of the fields are written; none when they are written as they come.
    zeros: Option<canonical::Zeros>,
}

pub(crate) use builtin::describe;
pub(crate) use restore::printed;

impl Schema {
    fn own(node: Node) -> Self {
        Self(Link::Own(Arc::new(node)))
    }

    fn node(&self) -> &Node {
        match &self.0 {
            Link::Own(node) => node,
            Link::Definition(index) => builtin::node(*index),
        }
    }

    /// The schema of an object's field, be it declared or one of a map's values.
    pub(crate) fn field(&self, name: &str) -> Option<&Self> {
        let node = self.node();
        node.fields.get(name).or(node.additional.as_ref())
    }

    /// The field is one of a declared set, not a map's entry.
    pub(crate) fn declares(&self, name: &str) -> bool {
        self.node().fields.contains_key(name)
    }

    /// The schema of a list's items.
    pub(crate) fn items(&self) -> Option<&Self> {
        self.node().items.as_ref()
    }

    /// What a value must be.
    pub(crate) fn kind(&self) -> Type {
        self.node().kind
    }

    /// Part of a CustomResourceDefinition's schema.
    pub(crate) fn is_custom(&self) -> bool {
        self.node().custom
    }

    /// A quantity, which may be given as a number.
    pub(crate) fn is_quantity(&self) -> bool {
        &*self.node().format == "quantity"
    }

    /// No fields but those that are declared.
    pub(crate) fn closed(&self) -> bool {
        let node = self.node();
        node.kind == Type::Object && !node.preserve
    }

    /// How server-side apply merges this list.
    pub(crate) fn list(&self) -> &List {
        &self.node().list
    }

    /// How a strategic merge patch merges this list.
    pub(crate) fn strategy(&self) -> &Strategy {
        &self.node().strategy
    }

    /// The default of a key that is not given.
    pub(crate) fn default_value(&self) -> Option<&Value> {
        self.node().default.as_ref()
    }

    /// Server-side apply owns this object as a whole.
    pub(crate) fn atomic(&self) -> bool {
        self.node().atomic
    }

    /// The JSON schema this was made of, with references to definitions in it.
    pub(crate) fn source(&self) -> &Value {
        &self.node().source
    }
}
