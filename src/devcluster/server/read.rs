//! GET of one object and of lists.

use std::sync::Arc;

use serde_json::{Value, json};

use super::http::{Agreed, Answer, Form, agree, json as answer_json, json_bytes, streamed};
use super::pages::{self, Continue};
use super::{Api, Call, not_found};
use crate::kinds::Kind;
use crate::selector::Selector;
use crate::status::{ApiError, Result};
use crate::store::{Key, Object, Page, Range, TooOld};
use crate::tables::{self, IncludeObject};

/// A list goes out in pieces of about this size instead of one copy of everything.
const PIECE: usize = 256 << 10;

/// Refuses a read of one object at a revision that is nonsense or has not been yet.
pub(crate) fn check_revision(api: &Api, call: &Call) -> Result<()> {
    let now = api.store.revision();
    match call.options.revision()? {
        Some(revision) if revision > now => Err(too_large(revision, now)),
        _ => Ok(()),
    }
}

pub(crate) fn get(call: &Call) -> Result<Answer> {
    let object = call.resource.get(&call.key()).ok_or_else(|| not_found(&call.kind, &call.target.name))?;
    object_answer(call, 200, &object)
}

/// One object in the form that the client asked for.
pub(crate) fn object_answer(call: &Call, code: u16, object: &Object) -> Result<Answer> {
    let agreed = agree_on(call, false)?;
    let mut answer = match agreed.form {
        // What was created for a dry run has no version.
        Form::Object if object.revision == 0 => {
            let mut value = Api::served_value(&call.kind, object);
            super::create::remove(&mut value["metadata"], "resourceVersion");
            value
        }
        Form::Object => return Ok(json_bytes(code, Api::served(&call.kind, object))),
        Form::Partial if !agreed.beta => return Ok(json_bytes(code, partial_of(object))),
        Form::Partial => partial(&object.value()),
        Form::Table => {
            let value = Api::served_value(&call.kind, object);
            let meta = json!({"resourceVersion": object.revision.to_string()});
            table(call, &meta, &[&value])?
        }
    };
    if agreed.beta {
        make_beta(&mut answer);
    }
    Ok(answer_json(code, &answer))
}

/// The form of an answer with one object or a list of them; 406 when the client asked for the other.
fn agree_on(call: &Call, list: bool) -> Result<Agreed> {
    let agreed = agree(&call.headers)?;
    match agreed.list {
        Some(asked) if asked != list => {
            let package = call.kind.group.split('.').next().filter(|p| !p.is_empty()).unwrap_or("core");
            let (asked, is, kind) = match list {
                false => ("PartialObjectMetadataList", "not a list", &call.kind.kind),
                true => ("PartialObjectMetadata", "a list", &call.kind.list_kind),
            };
            let of = match (call.kind.custom, list) {
                (false, _) => format!("*{package}.{kind}"),
                (true, false) => "*unstructured.Unstructured".into(),
                (true, true) => "*unstructured.UnstructuredList".into(),
            };
            let message = format!("you requested {asked}, but the requested object is {is} ({of})");
            Err(ApiError::new(406, "NotAcceptable", message))
        }
        _ => Ok(agreed),
    }
}

/// Renames tables and partial objects to the version before v1, which has the same fields.
fn make_beta(answer: &mut Value) {
    let rename = |value: &mut Value| {
        if value["apiVersion"] == "meta.k8s.io/v1" {
            value["apiVersion"] = "meta.k8s.io/v1beta1".into();
        }
    };
    for row in answer.get_mut("rows").and_then(Value::as_array_mut).into_iter().flatten() {
        row.get_mut("object").filter(|object| object.is_object()).map(rename);
    }
    rename(answer);
}

pub(crate) fn partial(value: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": value["metadata"]})
}

/// The same of a stored object, which needs no parsing for it.
pub(crate) fn partial_of(object: &Object) -> String {
    let metadata = object.metadata();
    format!(r#"{{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{metadata}}}"#)
}

pub(crate) fn include(call: &Call) -> Result<IncludeObject> {
    match call.options.get("includeObject") {
        None | Some("" | "Metadata") => Ok(IncludeObject::Metadata),
        Some("None") => Ok(IncludeObject::None),
        Some("Object") => Ok(IncludeObject::Object),
        Some(other) => {
            let error = format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', \
                 'Object', 'None', or empty"
            );
            Err(ApiError::bad_request(error))
        }
    }
}

pub(crate) fn table(call: &Call, meta: &Value, items: &[&Value]) -> Result<Value> {
    let kind = &call.kind;
    Ok(tables::table((&kind.group, &kind.kind), kind.columns.as_deref(), meta, items, include(call)?))
}

pub(crate) fn selector(call: &Call) -> Result<Selector> {
    let mut selector =
        Selector::parse(call.options.get("labelSelector"), call.options.get("fieldSelector"), &call.kind.fields)?;
    if !call.target.name.is_empty() {
        selector = Selector::parse(
            call.options.get("labelSelector"),
            Some(&format!("metadata.name={}", call.target.name)),
            &call.kind.fields,
        )?;
    }
    Ok(selector)
}

pub(crate) fn list(api: &Api, call: &Call) -> Result<Answer> {
    let agreed = agree_on(call, true)?;
    let page = select(api, call)?;
    let selector_empty = call.options.get("labelSelector").is_none_or(str::is_empty)
        && call.options.get("fieldSelector").is_none_or(str::is_empty);
    let mut meta = json!({"resourceVersion": page.revision.to_string()});
    if call.kind.custom {
        meta["continue"] = "".into();
    }
    if page.remaining > 0
        && let Some(last) = page.objects.last()
    {
        let next = Continue { revision: Some(page.revision), after: last.key.clone() };
        meta["continue"] = next.encode(call.namespace()).into();
        if selector_empty {
            meta["remainingItemCount"] = page.remaining.into();
        }
    }
    let mut answer = match agreed.form {
        Form::Object => return Ok(stream_list(&call.kind, &meta, page.objects)),
        Form::Partial => {
            let items: Vec<_> = page.objects.iter().map(|o| partial(&o.value())).collect();
            json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "items": items})
        }
        Form::Table => {
            let items: Vec<_> = page.objects.iter().map(|o| Api::served_value(&call.kind, o)).collect();
            table(call, &meta, &items.iter().collect::<Vec<_>>())?
        }
    };
    if agreed.beta {
        make_beta(&mut answer);
    }
    Ok(answer_json(200, &answer))
}

/// The objects that a list's parameters select.
pub(crate) fn select(api: &Api, call: &Call) -> Result<Page> {
    let options = &call.options;
    options.check_list()?;
    let selector = selector(call)?;
    let given = options.revision()?;
    let token = options.get("continue").filter(|c| !c.is_empty());
    let token = token.map(|token| Continue::decode(token, call.namespace())).transpose()?;
    let exact = options.get("resourceVersionMatch") == Some("Exact");
    if token.is_some() && given.is_some_and(|revision| revision > 0) {
        return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
    }
    let now = api.store.revision();
    let asked = token.as_ref().map_or(given, |token| token.revision);
    if let Some(revision) = asked.filter(|revision| *revision > now) {
        return Err(too_large(revision, now));
    }
    // What any version will do for comes from the watch cache, which knows no pages. apiserver: `shouldDelegateList`.
    let whole = given == Some(0) && token.is_none() && !exact;
    let limit = options.number("limit")?.filter(|_| !whole).unwrap_or(0) as usize;
    let range = Range {
        namespace: call.namespace().or(selector.namespace().filter(|ns| !ns.is_empty() && call.kind.namespaced)),
        after: token.as_ref().map(|t| &t.after),
        at: token.as_ref().map_or(given.filter(|_| exact), |token| token.revision),
        limit,
    };
    if let (Some(name), true) = (selector.name(), token.is_none() && range.at.is_none())
        && let Some(namespace) = range.namespace.or((!call.kind.namespaced).then_some(""))
    {
        // Asked for by name, as `kubectl wait` and single-object watches do: no need to walk.
        let found = call.resource.get(&Key::new(namespace, name));
        let objects = found.into_iter().filter(|object| selector.matches(object)).collect();
        return Ok(Page { objects, revision: now, remaining: 0 });
    }
    call.resource.list(&api.store, &range, |object| selector.matches(object)).map_err(|TooOld(_)| {
        let from_now = |token: &Continue| Continue { revision: None, ..token.clone() }.encode(call.namespace());
        pages::expired(token.as_ref().map(from_now))
    })
}

/// 504 for a revision that has not been yet. apiserver: `NewTooLargeResourceVersionError`.
pub(crate) fn too_large(revision: u64, now: u64) -> ApiError {
    let message = format!("Timeout: Too large resource version: {revision}, current: {now}");
    let mut error = ApiError::new(504, "Timeout", message);
    error.details = json!({"retryAfterSeconds": 1, "causes": [
        {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]});
    error
}

/// An object as an item of a list. Lists of built-in kinds say once what their items are: those leave out `itself`, with
/// which an object begins.
fn item(kind: &Kind, itself: &str, object: &Object, out: &mut Vec<u8>) {
    let served = Api::served(kind, object);
    match served.strip_prefix(itself.as_bytes()).filter(|_| !kind.custom) {
        Some(rest) => {
            out.push(b'{');
            out.extend_from_slice(rest);
        }
        None => out.extend_from_slice(&served),
    }
}

pub(crate) fn stream_list(kind: &Arc<Kind>, meta: &Value, objects: Vec<Arc<Object>>) -> Answer {
    let api_version = kind.api_version();
    let head = format!(
        "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{meta},\"items\":[",
        json!(&*kind.list_kind),
        json!(api_version)
    );
    let itself = format!("{{\"kind\":{},\"apiVersion\":{},", json!(&*kind.kind), json!(api_version));
    let total: usize = objects.iter().map(|o| o.json.len() + 1).sum();
    if total < PIECE {
        let mut out = Vec::with_capacity(head.len() + total + 3);
        out.extend_from_slice(head.as_bytes());
        for (i, object) in objects.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            item(kind, &itself, object, &mut out);
        }
        out.extend_from_slice(b"]}\n");
        return json_bytes(200, out);
    }
    let (mut head, kind, mut objects, mut first) = (Some(head), kind.clone(), objects.into_iter(), true);
    let mut open = true;
    let pieces = std::iter::from_fn(move || {
        if !open {
            return None;
        }
        let mut out = head.take().map(String::into_bytes).unwrap_or_default();
        while out.len() < PIECE {
            let Some(object) = objects.next() else {
                out.extend_from_slice(b"]}\n");
                open = false;
                break;
            };
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            item(&kind, &itself, &object, &mut out);
        }
        Some(Ok(out.into()))
    });
    super::http::answer(200, "application/json", streamed(futures::stream::iter(pieces)))
}
