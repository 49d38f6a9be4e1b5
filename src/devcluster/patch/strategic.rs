//! Strategic merge patches: lists are merged by the keys of their schema, and directives in the patch say more.

use serde_json::{Map, Value};

use crate::schema::{Schema, Strategy, printed};
use crate::status::{ApiError, Result};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const RETAIN_FAULT: &str = "invalid patch format of retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// Applies a strategic merge patch.
pub(crate) fn strategic(current: &Value, patch: &Value, schema: &Schema) -> Result<Value> {
    let (Value::Object(current), Value::Object(patch)) = (current, patch) else {
        return Err(ApiError::bad_request("a strategic merge patch must be a JSON object"));
    };
    Ok(object(current, patch, Some(schema))?.map_or(Value::Null, Value::Object))
}

/// `None` when the patch deletes the object.
fn object(
    current: &Map<String, Value>,
    patch: &Map<String, Value>,
    schema: Option<&Schema>,
) -> Result<Option<Map<String, Value>>> {
    match patch.get(DIRECTIVE).map(|d| d.as_str().unwrap_or_default()) {
        None | Some("merge") => {}
        Some("replace") => {
            let fields = patch.iter().filter(|(key, _)| *key != DIRECTIVE);
            return Ok(Some(fields.map(|(key, value)| (key.clone(), value.clone())).collect()));
        }
        Some("delete") => return Ok(None),
        // Nobody knows what it would mean, and the API server does not ask.
        Some(_) => return Ok(Some(current.clone())),
    }
    // What the patch says something about is made below; copying it here as well would double the work at each level.
    let directed = patch.keys().any(|key| is_directive(key));
    let untouched = current.iter().filter(|(key, _)| directed || !patch.contains_key(*key));
    let mut result: Map<String, Value> = untouched.map(|(key, value)| (key.clone(), value.clone())).collect();
    if let Some(keys) = patch.get(RETAIN_KEYS) {
        let Value::Array(keys) = keys else {
            return Err(ApiError::bad_request(RETAIN_FAULT));
        };
        for key in patch.keys().filter(|k| !k.starts_with('$') && !patch[*k].is_null()) {
            if !keys.iter().any(|kept| kept == key.as_str()) {
                return Err(ApiError::bad_request(RETAIN_FAULT));
            }
        }
        result.retain(|key, _| keys.iter().any(|kept| kept == key.as_str()));
    }
    for (key, removed) in patch {
        if let Some(field) = key.strip_prefix(DELETE_FROM)
            && let (Some(Value::Array(list)), Value::Array(removed)) = (result.get_mut(field), removed)
        {
            list.retain(|item| !removed.contains(item));
        }
    }
    for (key, value) in patch {
        if is_directive(key) {
            continue;
        }
        let schema = schema.and_then(|s| s.field(key));
        let now = if directed { result.get(key) } else { current.get(key) };
        match (now, value) {
            (_, Value::Null) => drop(result.remove(key)),
            (now, Value::Object(patch)) => {
                let nothing = Map::new();
                let now = now.and_then(Value::as_object).unwrap_or(&nothing);
                match object(now, patch, schema)? {
                    Some(merged) => drop(result.insert(key.clone(), merged.into())),
                    None => drop(result.remove(key)),
                }
            }
            (now, Value::Array(patch)) => {
                let now = now.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                result.insert(key.clone(), list(now, patch, schema)?.into());
            }
            (_, value) => drop(result.insert(key.clone(), value.clone())),
        }
    }
    for (key, order) in patch {
        let Some(field) = key.strip_prefix(ORDER) else { continue };
        let by = schema.and_then(|s| s.field(field)).map(Schema::strategy);
        check_order(patch.get(field), order, by)?;
        if let (Some(Value::Array(list)), Value::Array(order)) = (result.get_mut(field), order) {
            sort(list, order, by);
        }
    }
    Ok(Some(result))
}

fn is_directive(key: &str) -> bool {
    key == DIRECTIVE || key == RETAIN_KEYS || key.starts_with(ORDER) || key.starts_with(DELETE_FROM)
}

fn list(current: &[Value], patch: &[Value], schema: Option<&Schema>) -> Result<Vec<Value>> {
    let replaces = |item: &Value| item[DIRECTIVE] == "replace";
    match schema.map(Schema::strategy) {
        Some(Strategy::Merge) => {
            let mut result = current.to_vec();
            for item in patch {
                if !result.contains(item) {
                    result.push(item.clone());
                }
            }
            Ok(result)
        }
        Some(Strategy::MergeBy(key)) => {
            if patch.iter().any(|item| item.get(&**key).is_none() && replaces(item)) {
                let kept = patch.iter().filter(|item| !(item.get(&**key).is_none() && replaces(item)));
                return Ok(kept.cloned().collect());
            }
            let merged = by_key(current, patch, key, schema.and_then(Schema::items))?;
            Ok(interleave(merged, current, patch, key))
        }
        Some(Strategy::Replace) | None => Ok(patch.iter().filter(|item| !replaces(item)).cloned().collect()),
    }
}

fn by_key(current: &[Value], patch: &[Value], key: &str, schema: Option<&Schema>) -> Result<Vec<Value>> {
    let mut result = current.to_vec();
    for item in patch {
        let Value::Object(fields) = item else {
            return Err(ApiError::new(500, "", "list element types are not identical"));
        };
        let Some(id) = fields.get(key) else {
            let message = format!("map: {} does not contain declared merge key: {key}", printed(item));
            return Err(ApiError::new(500, "", message));
        };
        if fields.get(DIRECTIVE).is_some_and(|d| d == "delete") {
            result.retain(|other| other.get(key) != Some(id));
            continue;
        }
        let nothing = Map::new();
        let found = result.iter().position(|other| other.get(key) == Some(id));
        let now = found.and_then(|i| result[i].as_object()).unwrap_or(&nothing);
        let Some(merged) = object(now, fields, schema)? else { continue };
        match found {
            Some(index) => result[index] = merged.into(),
            None => result.push(merged.into()),
        }
    }
    Ok(result)
}

/// Puts items of the patch before those of the server alone, unless the server had both the other way round.
/// apimachinery: `normalizeElementOrder`.
fn interleave(merged: Vec<Value>, current: &[Value], patch: &[Value], key: &str) -> Vec<Value> {
    let place = |list: &[Value], item: &Value| list.iter().position(|other| other.get(key) == item.get(key));
    let (mut named, rest): (Vec<_>, Vec<_>) = merged.into_iter().partition(|item| place(patch, item).is_some());
    named.sort_by_key(|item| place(patch, item));
    let (mut named, mut rest) = (named.into_iter().peekable(), rest.into_iter().peekable());
    let mut all = Vec::with_capacity(current.len() + patch.len());
    loop {
        let server_first = match (named.peek(), rest.peek()) {
            (None, None) => return all,
            (None, Some(_)) => true,
            (Some(_), None) => false,
            (Some(named), Some(rest)) => place(current, named).is_some_and(|at| place(current, rest) < Some(at)),
        };
        all.extend(if server_first { rest.next() } else { named.next() });
    }
}

/// Refuses a list whose items are not in the order that comes with it. apimachinery: `validatePatchWithSetOrderList`.
fn check_order(patch: Option<&Value>, order: &Value, by: Option<&Strategy>) -> Result<()> {
    let (Some(list @ Value::Array(items)), Value::Array(named)) = (patch, order) else { return Ok(()) };
    let same = |item: &Value, name: &Value| match by {
        Some(Strategy::MergeBy(key)) => item.get(&**key) == name.get(&**key),
        _ => item == name,
    };
    let mut rest = named.iter();
    // What is deleted is in no order.
    let mut ordered = items.iter().filter(|item| item.get(DIRECTIVE).is_none());
    if ordered.all(|item| rest.any(|name| same(item, name))) {
        return Ok(());
    }
    let message = format!(
        "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
        printed(list),
        printed(order)
    );
    Err(ApiError::new(500, "", message))
}

/// Puts the items that `order` names in its order; every other stays behind the one it followed.
fn sort(list: &mut Vec<Value>, order: &[Value], by: Option<&Strategy>) {
    let place = |item: &Value| match by {
        Some(Strategy::MergeBy(key)) => order.iter().position(|o| o.get(&**key) == item.get(&**key)),
        _ => order.iter().position(|o| o == item),
    };
    let mut last = 0;
    let mut placed: Vec<(usize, Value)> = Vec::with_capacity(list.len());
    for item in list.drain(..) {
        let at = place(&item);
        last = at.map_or(last, |at| at + 1);
        placed.push((last, item));
    }
    placed.sort_by_key(|(at, _)| *at);
    list.extend(placed.into_iter().map(|(_, item)| item));
}
