//! Kinds that are only asked, never stored: token and access reviews, and bindings by name.

use serde_json::{Value, json};

use super::create::check_identity;
use super::http::{Answer, content_type, json as answer_json, parse};
use super::{Api, Call};
use crate::auth::tokens::audiences;
use crate::auth::{Action, User};
use crate::status::{ApiError, FieldError, Result};

pub(crate) fn answer(api: &Api, call: &Call, body: &[u8]) -> Result<Answer> {
    let mut review = parse(&content_type(&call.headers), body)?;
    let kind = &call.kind;
    check_identity(kind, &mut review, &call.target.namespace, "")?;
    let invalid = |error| ApiError::invalid(&kind.kind, &kind.group, "", &[error]);
    let spec = &review["spec"];
    let status = match &*kind.plural {
        "tokenreviews" => token_review(api, spec).map_err(invalid)?,
        "selfsubjectreviews" => json!({"userInfo": call.user.info()}),
        "selfsubjectrulesreviews" => {
            let (resources, paths) = api.authorizer.rules(&call.user, spec["namespace"].as_str().unwrap_or_default());
            json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
        }
        "selfsubjectaccessreviews" => access(api, spec, &call.user).map_err(invalid)?,
        "subjectaccessreviews" | "localsubjectaccessreviews" => {
            let user = User::from_review(spec);
            if user.name.is_empty() && user.groups.is_empty() {
                let error =
                    FieldError::invalid("spec.user", &json!(""), "at least one of user or group must be specified");
                return Err(invalid(error));
            }
            access(api, spec, &user).map_err(invalid)?
        }
        _ => return Err(ApiError::new(405, "MethodNotAllowed", "use the binding subresource of the pod")),
    };
    review["status"] = status;
    if let Some(metadata) = review["metadata"].as_object_mut() {
        metadata.entry("creationTimestamp").or_insert(Value::Null);
    }
    Ok(answer_json(201, &review))
}

fn token_review(api: &Api, spec: &Value) -> Result<Value, FieldError> {
    let token = spec["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(FieldError::required("spec.token", ""));
    }
    let wanted = audiences(spec);
    let names: Vec<&str> = wanted.iter().map(String::as_str).collect();
    Ok(match api.token_user(token, &names) {
        Ok((user, audiences)) => json!({"authenticated": true, "user": user.info(), "audiences": audiences}),
        Err(error) => json!({"user": {}, "error": error}),
    })
}

fn access(api: &Api, spec: &Value, user: &User) -> Result<Value, FieldError> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let text = |value: &'_ Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    if resource.is_object() == path.is_object() {
        let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        return Err(FieldError::invalid("spec.resourceAttributes", resource, detail));
    }
    let allowed = if path.is_object() {
        let (verb, path) = (text(path, "verb"), text(path, "path"));
        api.authorizer.allows(user, &Action { verb: &verb, path: Some(&path), ..Action::default() })
    } else {
        let [verb, group, name, namespace, kind, subresource] =
            ["verb", "group", "name", "namespace", "resource", "subresource"].map(|key| text(resource, key));
        let action = Action {
            verb: &verb,
            group: &group,
            resource: &kind,
            subresource: &subresource,
            namespace: &namespace,
            name: &name,
            path: None,
        };
        api.authorizer.allows(user, &action)
    };
    Ok(match allowed {
        true => json!({"allowed": true, "reason": "RBAC: allowed"}),
        false => json!({"allowed": false}),
    })
}

impl Api {
    /// The user of a service account token and the audiences it was accepted for.
    pub(crate) fn token_user(&self, token: &str, audiences: &[&str]) -> Result<(User, Vec<String>), String> {
        let claims = self.tokens.check(token, audiences)?;
        let user = claims.user(|plural, namespace, name| {
            let object = self.get("", plural, namespace, name)?;
            Some(object.uid.to_string())
        })?;
        let accepted = claims.aud.iter().filter(|a| audiences.contains(&a.as_str())).cloned().collect();
        Ok((user, accepted))
    }
}
