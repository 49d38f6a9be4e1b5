//! The API server: from a TLS connection to an answer.
//!
//! [`listen`] accepts and authenticates connections, [`handle`] routes each request (path, user, permission), and the
//! files beside it do what it asks: [`read`], [`watch`], [`create`], [`update`], [`patching`], [`delete`],
//! [`subresources`], [`reviews`], [`discovery`], [`proxy`], [`metrics`]. [`convert`] translates between versions of a
//! kind, [`meta`] keeps the rules of `metadata`, [`strategy`] the few rules that belong to one kind, and [`faults`]
//! fails on demand.

pub(crate) mod admission;
mod api_services;
pub(crate) mod convert;
pub(crate) mod crds;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod discovery;
mod duplicates;
pub(crate) mod faults;
pub(crate) mod handle;
pub(crate) mod http;
pub(crate) mod listen;
pub(crate) mod meta;
pub(crate) mod metrics;
pub(crate) mod options;
pub(crate) mod pages;
pub(crate) mod patching;
pub(crate) mod path;
mod protobuf;
pub(crate) mod proxy;
pub(crate) mod read;
pub(crate) mod reviews;
pub(crate) mod scale;
pub(crate) mod scan;
mod services;
mod socket;
pub(crate) mod strategy;
pub(crate) mod subresources;
pub(crate) mod update;
pub(crate) mod watch;
mod yaml;
mod yaml_duplicates;

use std::sync::Arc;

use ::http::HeaderMap;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::apply::Reset;
use crate::auth::User;
use crate::auth::rbac::Authorizer;
use crate::auth::tokens::Tokens;
use crate::kinds::{Kind, Registry};
use crate::status::{ApiError, Result};
use crate::store::{Key, Object, Resource, ResourceId, Store};

/// Everything that requests share.
pub(crate) struct Api {
    pub(crate) store: Arc<Store>,
    pub(crate) registry: Registry,
    pub(crate) authorizer: Authorizer,
    pub(crate) tokens: Tokens,
    pub(crate) kubelets: proxy::Kubelets,
    pub(crate) metrics: metrics::Metrics,
    pub(crate) openapi: discovery::OpenApiCache,
    /// There when faults may be asked for.
    pub(crate) faults: Option<Arc<faults::Faults>>,
    /// Cut when the server stops: ends watches and other long answers.
    pub(crate) stopping: CancellationToken,
}

/// A request for a resource, routed and authorized.
pub(crate) struct Call {
    pub(crate) kind: Arc<Kind>,
    pub(crate) resource: Arc<Resource>,
    pub(crate) target: path::Target,
    pub(crate) options: options::Options,
    pub(crate) user: User,
    pub(crate) headers: HeaderMap,
}

impl Call {
    pub(crate) fn key(&self) -> Key {
        Key::new(&self.target.namespace, &self.target.name)
    }

    pub(crate) fn namespace(&self) -> Option<&str> {
        Some(self.target.namespace.as_str()).filter(|ns| !ns.is_empty())
    }

    pub(crate) fn user_agent(&self) -> &str {
        self.headers.get(::http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    pub(crate) fn write(&self) -> Result<Write<'_>> {
        self.options.check_manager()?;
        Ok(Write {
            kind: &self.kind,
            resource: &self.resource,
            subresource: &self.target.subresource,
            manager: self.options.manager(self.user_agent()),
            user: &self.user,
            dry_run: self.options.dry_run()?,
            validation: self.options.field_validation()?,
            source: Source::Body,
            duplicates: &[],
            body: &[],
        })
    }
}

/// Where the new state of an object comes from; decides how its faults are told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Source {
    Body,
    Patch,
    /// Server-side apply has kept the managed fields already.
    Apply,
}

/// The circumstances of a write.
#[derive(Clone, Copy)]
pub(crate) struct Write<'a> {
    pub(crate) kind: &'a Kind,
    pub(crate) resource: &'a Resource,
    pub(crate) subresource: &'a str,
    pub(crate) manager: &'a str,
    pub(crate) user: &'a User,
    pub(crate) dry_run: bool,
    pub(crate) validation: options::FieldValidation,
    pub(crate) source: Source,
    /// Fields that are twice in the body, as in `duplicate field "spec.a"`.
    pub(crate) duplicates: &'a [String],
    /// The body as it was sent, when it is JSON of the whole object: faults are told in its order.
    pub(crate) body: &'a [u8],
}

impl Write<'_> {
    /// The fields that this request cannot set.
    pub(crate) fn reset(&self) -> Reset {
        match self.subresource {
            "status" if self.kind.custom => Reset::Others,
            "status" => Reset::Spec,
            "" if self.kind.status => Reset::Status,
            _ => Reset::Nothing,
        }
    }
}

/// What a write led to.
pub(crate) struct Written {
    pub(crate) object: Arc<Object>,
    pub(crate) warnings: Vec<String>,
    pub(crate) created: bool,
}

impl Api {
    pub(crate) fn resource(&self, group: &str, plural: &str) -> Arc<Resource> {
        self.store.resource(&ResourceId::new(group, plural))
    }

    pub(crate) fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.resource(group, plural).get(&Key::new(namespace, name))
    }

    /// The answer's bytes for an object, in the version that was asked for.
    pub(crate) fn served(kind: &Kind, object: &Object) -> bytes::Bytes {
        if kind.stored_as_served() {
            return object.json.clone();
        }
        crate::store::encoded(&convert::to_served(kind, object.value())).into()
    }

    pub(crate) fn served_value(kind: &Kind, object: &Object) -> Value {
        convert::to_served(kind, object.value())
    }
}

pub(crate) fn not_found(kind: &Kind, name: &str) -> ApiError {
    ApiError::not_found(&kind.plural, &kind.group, name)
}

pub(crate) fn conflict(kind: &Kind, name: &str, message: &str) -> ApiError {
    ApiError::conflict(&kind.plural, &kind.group, name, message)
}

/// The conflict of a lost race.
pub(crate) fn modified(kind: &Kind, name: &str) -> ApiError {
    let message = "the object has been modified; please apply your changes to the latest version and try again";
    conflict(kind, name, message)
}

pub(crate) fn log_failed(error: &std::io::Error) -> ApiError {
    if error.kind() == std::io::ErrorKind::FileTooLarge && error.raw_os_error().is_none() {
        // The store's limit for one object, which in a real cluster is etcd's and told in its words.
        return ApiError::new(500, "", "etcdserver: request is too large");
    }
    ApiError::internal(format!("the change could not be made durable: {error}"))
}

/// Now, as `metav1.Time` writes it.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
