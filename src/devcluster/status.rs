//! `metav1.Status`: every error as Kubernetes words it.

use serde_json::{Value, json};

/// The result of anything that can end in an API error.
pub type Result<T, E = ApiError> = std::result::Result<T, E>;

/// One offending field. apimachinery: `field.Error`, as it appears in `status.details.causes`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// Path, as in `spec.containers[0].name`.
    pub field: String,
    /// `FieldValueRequired`, `FieldValueInvalid`, `FieldValueNotSupported`, `FieldValueDuplicate`, …
    pub reason: &'static str,
    /// The sentence after the path, as in `Required value: must be set`.
    pub message: String,
}

impl FieldError {
    fn new(field: impl Into<String>, reason: &'static str, message: String) -> Self {
        Self { field: field.into(), reason, message }
    }

    /// The field must be set.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let message = if detail.is_empty() { "Required value".into() } else { format!("Required value: {detail}") };
        Self::new(field, "FieldValueRequired", message)
    }

    /// The field's value is malformed or breaks a rule.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self::new(field, "FieldValueInvalid", format!("Invalid value: {value}: {detail}"))
    }

    /// As `invalid`, with the value as it is to be shown.
    pub(crate) fn invalid_shown(field: impl Into<String>, shown: &str, detail: &str) -> Self {
        Self::new(field, "FieldValueInvalid", format!("Invalid value: {shown}: {detail}"))
    }

    /// As `not_supported`, with the value as it is to be shown.
    pub(crate) fn not_supported_shown(field: impl Into<String>, shown: &str, allowed: &[&str]) -> Self {
        let allowed: Vec<_> = allowed.iter().map(|a| format!("{a:?}")).collect();
        let message = format!("Unsupported value: {shown}: supported values: {}", allowed.join(", "));
        Self::new(field, "FieldValueNotSupported", message)
    }

    /// The field's type is wrong.
    pub fn type_invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self::new(field, "FieldValueTypeInvalid", format!("Invalid value: {value}: {detail}"))
    }

    /// The field's value is none of those allowed.
    pub fn not_supported(field: impl Into<String>, value: &Value, allowed: &[&str]) -> Self {
        let allowed: Vec<_> = allowed.iter().map(|a| format!("{a:?}")).collect();
        Self::new(
            field,
            "FieldValueNotSupported",
            format!("Unsupported value: {value}: supported values: {}", allowed.join(", ")),
        )
    }

    /// The value is there twice.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self::new(field, "FieldValueDuplicate", format!("Duplicate value: {value}"))
    }

    /// The field may not be set here.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::new(field, "FieldValueForbidden", format!("Forbidden: {detail}"))
    }
}

/// An error as a client sees it: an HTTP code and a `Status` body.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The HTTP code.
    pub code: u16,
    /// The CamelCase reason.
    pub reason: &'static str,
    /// What `kubectl` prints.
    pub message: String,
    /// `status.details`, or null.
    pub details: Value,
    /// `metadata.continue`: where a list whose token has expired can go on.
    pub continue_token: Option<String>,
    /// What is to be told beside the error, as `Warning` headers.
    pub warnings: Box<[String]>,
}

impl ApiError {
    /// An error without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: Value::Null,
            continue_token: None,
            warnings: Box::default(),
        }
    }

    /// The error with warnings beside it.
    pub(crate) fn warned(mut self, warnings: &[String]) -> Self {
        self.warnings = warnings.into();
        self
    }

    /// 400
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 500
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {}", message.into()))
    }

    /// 404 for an object; `resource` is the plural with the group, as in `deployments.apps`.
    pub fn not_found(resource: &str, group: &str, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} {name:?} not found", qualified(resource, group)))
            .with_details(name, group, resource)
    }

    /// 409 for a name that is taken.
    pub fn already_exists(resource: &str, group: &str, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} {name:?} already exists", qualified(resource, group)))
            .with_details(name, group, resource)
    }

    /// 409 for a write that lost a race or whose precondition fails.
    pub fn conflict(resource: &str, group: &str, name: &str, message: &str) -> Self {
        let text = format!("Operation cannot be fulfilled on {} {name:?}: {message}", qualified(resource, group));
        Self::new(409, "Conflict", text).with_details(name, group, resource)
    }

    /// 403
    pub fn forbidden(resource: &str, group: &str, name: &str, message: &str) -> Self {
        let what = if name.is_empty() {
            qualified(resource, group)
        } else {
            format!("{} {name:?}", qualified(resource, group))
        };
        Self::new(403, "Forbidden", format!("{what} is forbidden: {message}")).with_details(name, group, resource)
    }

    /// 422 with a cause for each field; `kind` as in `Pod`.
    pub fn invalid(kind: &str, group: &str, name: &str, errors: &[FieldError]) -> Self {
        let mut lines: Vec<_> = Vec::new();
        // What was found twice is said once, though it is a cause twice.
        for line in errors.iter().map(|e| format!("{}: {}", e.field, e.message)) {
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        let said = match lines.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let causes: Vec<_> =
            errors.iter().map(|e| json!({"reason": e.reason, "message": e.message, "field": e.field})).collect();
        let mut error = Self::new(422, "Invalid", format!("{} {name:?} is invalid: {said}", qualified(kind, group)))
            .with_details(name, group, kind);
        error.details["causes"] = causes.into();
        error
    }

    /// 410 for a resourceVersion that history no longer reaches.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    fn with_details(mut self, name: &str, group: &str, kind: &str) -> Self {
        let mut details = json!({});
        if !kind.is_empty() {
            details["kind"] = kind.into();
        }
        if !name.is_empty() {
            details["name"] = name.into();
        }
        if !group.is_empty() {
            details["group"] = group.into();
        }
        self.details = details;
        self
    }

    /// The `Status` body.
    pub fn body(&self) -> Value {
        let mut body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        // An error of no known kind has no reason.
        if !self.reason.is_empty() {
            body["reason"] = self.reason.into();
        }
        if !self.details.is_null() {
            body["details"] = self.details.clone();
        }
        if self.reason.is_empty()
            && let Value::Object(body) = &mut body
        {
            body.remove("reason");
        }
        if let Some(token) = &self.continue_token {
            body["metadata"]["continue"] = token.as_str().into();
        }
        body
    }
}

fn qualified(resource: &str, group: &str) -> String {
    if group.is_empty() { resource.into() } else { format!("{resource}.{group}") }
}
