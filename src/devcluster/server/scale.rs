//! The scale subresource of workloads and of custom kinds that have one.

use http::Method;
use serde_json::{Value, json};

use super::http::{Answer, content_type, json as answer_json, parse};
use super::patching::Patch;
use super::{Api, Call, Source, not_found};
use crate::kinds::Kind;
use crate::status::{ApiError, FieldError, Result};

pub(crate) fn answer(api: &Api, call: &Call, method: &Method, body: bytes::Bytes) -> Result<Answer> {
    let kind = &call.kind;
    let media = content_type(&call.headers);
    let change = |old: &Value| -> Result<Value> {
        let shown = show(kind, old);
        let wanted = match *method {
            Method::PUT => parse(&media, &body)?,
            _ => Patch::read(kind, &media, body.clone())?.apply_to(kind, &shown)?,
        };
        let given = wanted["metadata"]["resourceVersion"].as_str().filter(|v| !v.is_empty());
        if given.is_some_and(|given| old["metadata"]["resourceVersion"] != given) {
            return Err(super::modified(kind, &call.target.name));
        }
        let replicas = wanted["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            let error = FieldError::invalid("spec.replicas", &json!(replicas), "should be a non-negative integer");
            return Err(ApiError::invalid("Scale", "autoscaling", &call.target.name, &[error]));
        }
        let mut new = old.clone();
        set(&mut new, spec_path(kind), replicas.into());
        Ok(new)
    };
    let object = match *method {
        Method::GET => call.resource.get(&call.key()).ok_or_else(|| not_found(kind, &call.target.name))?,
        Method::PUT | Method::PATCH => {
            let mut write = call.write()?;
            write.source = Source::Body;
            api.modify(&write, &call.key(), change)?.object
        }
        _ => {
            return Err(ApiError::new(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            ));
        }
    };
    Ok(answer_json(200, &show(kind, &Api::served_value(kind, &object))))
}

fn spec_path(kind: &Kind) -> &str {
    kind.scale.as_ref().map_or(".spec.replicas", |scale| &scale.spec_replicas)
}

/// `autoscaling/v1` `Scale` of an object.
fn show(kind: &Kind, object: &Value) -> Value {
    let meta = &object["metadata"];
    let mut metadata = json!({"name": meta["name"]});
    for key in ["namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if !meta[key].is_null() {
            metadata[key] = meta[key].clone();
        }
    }
    let status_path = kind.scale.as_ref().map_or(".status.replicas", |scale| &scale.status_replicas);
    let mut spec = json!({});
    let replicas = at(object, spec_path(kind));
    if kind.scale.is_none() || replicas.as_i64().unwrap_or(0) != 0 {
        spec["replicas"] = replicas.as_i64().unwrap_or(1).into();
    }
    let mut status = json!({"replicas": at(object, status_path).as_i64().unwrap_or(0)});
    let selector = match &kind.scale {
        Some(scale) => scale.selector.as_deref().and_then(|path| at(object, path).as_str()).map(Into::into),
        None => Some(selector_text(&object["spec"]["selector"])),
    };
    if let Some(selector) = selector.filter(|s: &String| !s.is_empty()) {
        status["selector"] = selector.into();
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

fn at<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split('.').filter(|p| !p.is_empty()).fold(object, |value, part| &value[part])
}

fn set(object: &mut Value, path: &str, value: Value) {
    let mut place = object;
    for part in path.split('.').filter(|p| !p.is_empty()) {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[part];
    }
    *place = value;
}

/// A label selector in the form of a query parameter.
fn selector_text(selector: &Value) -> String {
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let mut parts: Vec<String> = labels.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values = || {
            let values = expression["values"].as_array().into_iter().flatten();
            values.filter_map(Value::as_str).collect::<Vec<_>>().join(",")
        };
        parts.push(match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({})", values()),
            Some("NotIn") => format!("{key} notin ({})", values()),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key.into(),
        });
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_written_as_queries() {
        let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["d", "e"]}, {"key": "f", "operator": "DoesNotExist"}]});
        assert_eq!(selector_text(&selector), "a=b,c in (d,e),!f");
    }
}
