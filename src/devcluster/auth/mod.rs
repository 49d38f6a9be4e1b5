//! Who is asking, and may they: client certificates, service account tokens, impersonation, nodes, RBAC.

pub(crate) mod escalation;
pub(crate) mod node;
pub(crate) mod rbac;
pub(crate) mod roles;
pub(crate) mod tokens;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// An authenticated user. RBAC and reviews see nothing else of a request's credentials.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) groups: Vec<String>,
    pub(crate) extra: BTreeMap<String, Vec<String>>,
}

impl User {
    pub(crate) fn anonymous() -> Self {
        Self { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()], ..Self::default() }
    }

    /// The subject of a client certificate that TLS has verified already.
    pub(crate) fn from_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let mut groups: Vec<String> =
            subject.iter_organization().filter_map(|o| o.as_str().ok().map(Into::into)).collect();
        groups.push("system:authenticated".into());
        let digest = Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let id = ("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("X509SHA256={digest}")]);
        Some(Self { name, groups, extra: [id].into(), ..Self::default() })
    }

    pub(crate) fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// `authentication.k8s.io` `UserInfo`.
    pub(crate) fn info(&self) -> Value {
        let mut info = json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            info["uid"] = self.uid.as_str().into();
        }
        if !self.extra.is_empty() {
            info["extra"] = json!(self.extra);
        }
        info
    }

    /// Reads `user`, `uid`, `groups` and `extra` of an access review's spec.
    pub(crate) fn from_review(spec: &Value) -> Self {
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(Into::into)).collect()
        };
        Self {
            name: spec["user"].as_str().unwrap_or_default().into(),
            uid: spec["uid"].as_str().unwrap_or_default().into(),
            groups: texts(&spec["groups"]),
            extra: spec["extra"].as_object().into_iter().flatten().map(|(k, v)| (k.clone(), texts(v))).collect(),
        }
    }
}

/// What a request wants to do. apiserver: `authorizer.Attributes`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Action<'a> {
    pub(crate) verb: &'a str,
    pub(crate) group: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    /// The node that a field selector of pods asks for.
    pub(crate) node: &'a str,
    /// Set for requests that are not about resources.
    pub(crate) path: Option<&'a str>,
}

impl Action<'_> {
    /// The sentence after "is forbidden: ", with the authorizer's reason when it gave one.
    pub(crate) fn denial_because(&self, user: &User, reason: &str) -> String {
        let denial = self.denial(user);
        if reason.is_empty() { denial } else { format!("{denial}: {reason}") }
    }

    /// The sentence after "is forbidden: ".
    pub(crate) fn denial(&self, user: &User) -> String {
        let who = format!("User {:?} cannot {}", user.name, self.verb);
        if let Some(path) = self.path {
            return format!("{who} path {path:?}");
        }
        let mut resource = self.resource.to_owned();
        if !self.subresource.is_empty() {
            resource = format!("{resource}/{}", self.subresource);
        }
        let place = match self.namespace {
            "" => "at the cluster scope".to_owned(),
            ns => format!("in the namespace {ns:?}"),
        };
        format!("{who} resource {resource:?} in API group {:?} {place}", self.group)
    }
}
