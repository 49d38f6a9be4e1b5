//! The scale subresource of workloads and of custom kinds that have one.

use http::Method;
use serde_json::{Value, json};

use super::create::{check_kind, check_name};
use super::http::{Answer, content_type, json as answer_json, parse_as, parse_yaml};
use super::patching::{APPLY, Patch};
use super::{Api, Call, Source, not_found};
use crate::kinds::Kind;
use crate::status::{ApiError, FieldError, Result};

pub(crate) fn answer(api: &Api, call: &Call, method: &Method, body: bytes::Bytes) -> Result<Answer> {
    let kind = &call.kind;
    let media = content_type(&call.headers);
    if *method == Method::PATCH && media == APPLY {
        let written = api.apply_fields(call, &applied(kind, &body)?)?;
        return Ok(answer_json(200, &show(kind, &Api::served_value(kind, &written.object))));
    }
    let change = |old: &Value| -> Result<Value> {
        let shown = show(kind, old);
        let wanted = match *method {
            Method::PUT => {
                let scale = parse_as("Scale", &media, &body)?;
                check_kind(&scale, "Scale", &["autoscaling/v1"])?;
                check_name(scale["metadata"]["name"].as_str().unwrap_or_default(), &call.target.name)?;
                scale
            }
            _ => Patch::read(kind, &media, body.clone())?.apply_to(kind, &shown)?,
        };
        check_replicas(&wanted, *method == Method::PATCH)?;
        let given = wanted["metadata"]["resourceVersion"].as_str().filter(|v| !v.is_empty());
        if given.is_some_and(|given| old["metadata"]["resourceVersion"] != given) {
            return Err(super::modified(kind, &call.target.name));
        }
        let replicas = wanted["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 && kind.custom {
            // Custom kinds are told of their own field.
            let error = FieldError::invalid(spec_path(kind), &json!(replicas), "should be a non-negative integer");
            return Err(ApiError::invalid(&kind.kind, &kind.group, &call.target.name, &[error]));
        }
        if replicas < 0 {
            let detail = "must be greater than or equal to 0";
            let error = FieldError::invalid("spec.replicas", &json!(replicas), detail);
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
        _ => return Err(super::handle::not_allowed()),
    };
    let value = Api::served_value(kind, &object);
    if kind.custom && *method == Method::GET && at(&value, spec_path(kind)).is_null() {
        let message = format!("the spec replicas field {:?} does not exist", spec_path(kind));
        return Err(ApiError::internal(message));
    }
    Ok(answer_json(200, &show(kind, &value)))
}

/// Refuses a number of replicas that is no number.
fn check_replicas(scale: &Value, patched: bool) -> Result<()> {
    let replicas = &scale["spec"]["replicas"];
    if replicas.is_null() || replicas.is_i64() {
        return Ok(());
    }
    let given = super::http::said(replicas);
    let fault = format!("json: cannot unmarshal {given} into Go struct field ScaleSpec.spec.replicas of type int32");
    Err(match patched {
        true => {
            let error = FieldError::invalid("patch", &scale.to_string().into(), &fault);
            ApiError::invalid("", "", "", &[error])
        }
        false => ApiError::bad_request(format!("Scale in version \"v1\" cannot be handled as a Scale: {fault}")),
    })
}

/// What applying a `Scale` applies to the object itself.
fn applied(kind: &Kind, body: &[u8]) -> Result<Value> {
    let scale = parse_yaml(body).map_err(|e| ApiError::bad_request(format!("error decoding YAML: {e}")))?;
    if scale["kind"] != "Scale" || scale["apiVersion"] != "autoscaling/v1" {
        return Err(ApiError::bad_request("what is applied to scale must be a Scale of autoscaling/v1"));
    }
    let mut object = json!({"apiVersion": kind.api_version(), "kind": *kind.kind, "metadata": scale["metadata"]});
    if !scale["spec"]["replicas"].is_null() {
        set(&mut object, spec_path(kind), scale["spec"]["replicas"].clone());
    }
    Ok(object)
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
    if let Some(replicas) = replicas.as_i64().filter(|replicas| *replicas != 0) {
        spec["replicas"] = replicas.into();
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
