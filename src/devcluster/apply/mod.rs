//! Server-side apply: who owns which fields, and what an object becomes when somebody applies theirs.
//!
//! `check` refuses lists that name an item twice, `last_applied` keeps kubectl's annotation, `set` reads and writes sets of fields, `merge` merges, compares and removes; this file keeps `managedFields`.

mod check;
mod last_applied;
mod merge;
mod set;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};

use crate::schema::Schema;
use crate::status::{ApiError, Result};
use merge::{compare, remove};
use set::Set;

/// Who writes, through what.
pub(crate) struct Request<'a> {
    pub(crate) manager: &'a str,
    pub(crate) force: bool,
    pub(crate) subresource: Option<&'a str>,
    pub(crate) api_version: &'a str,
    pub(crate) now: &'a str,
    pub(crate) reset: Reset,
}

/// What a request cannot set, so that its manager does not own it. apiserver: `GetResetFields`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Reset {
    #[default]
    Nothing,
    Status,
    Spec,
    /// Everything outside of the status.
    Others,
}

impl Reset {
    fn filter(self, mut set: Set) -> Set {
        match self {
            Self::Nothing => {}
            Self::Status => drop(set.below.remove("f:status")),
            Self::Spec => drop(set.below.remove("f:spec")),
            Self::Others => set.below.retain(|name, _| name == "f:status"),
        }
        set
    }
}

struct Entry {
    /// The entry but its fields.
    head: Value,
    fields: Set,
}

impl Entry {
    fn new(request: &Request<'_>, operation: &str, fields: Set) -> Self {
        let mut head = json!({"manager": request.manager, "operation": operation, "apiVersion": request.api_version,
            "time": request.now, "fieldsType": "FieldsV1"});
        if let Some(subresource) = request.subresource {
            head["subresource"] = subresource.into();
        }
        Self { head, fields }
    }

    fn is_of(&self, request: &Request<'_>, operation: &str) -> bool {
        self.head["manager"] == request.manager
            && self.head["operation"] == operation
            && self.head["subresource"].as_str().unwrap_or_default() == request.subresource.unwrap_or_default()
            && (operation == "Apply" || self.head["apiVersion"] == request.api_version)
    }

    /// As conflicts name the manager.
    fn name(&self) -> String {
        let mut name = self.head["manager"].to_string();
        if let Some(subresource) = self.head["subresource"].as_str() {
            name += &format!(" with subresource {subresource:?}");
        }
        if self.head["operation"] != "Apply" {
            name += &format!(" using {}", self.head["apiVersion"].as_str().unwrap_or_default());
        }
        name
    }
}

fn read(object: &Value) -> Vec<Entry> {
    let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    entries
        .filter(|entry| is_note(entry))
        .map(|entry| {
            let mut head = entry.clone();
            if let Value::Object(head) = &mut head {
                head.remove("fieldsV1");
            }
            Entry { head, fields: Set::read(&entry["fieldsV1"]) }
        })
        .collect()
}

/// Whether an entry of `managedFields` can be read at all. apimachinery: `DecodeManagedFields`.
fn is_note(entry: &Value) -> bool {
    matches!(entry["operation"].as_str(), Some("Apply" | "Update"))
        && entry["fieldsType"] == "FieldsV1"
        && entry["apiVersion"].is_string()
}

fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    entries.sort_by(|a, b| order(&a.head).cmp(&order(&b.head)));
    let entries = entries.into_iter().map(|Entry { mut head, fields }| {
        head["fieldsV1"] = fields.write();
        head
    });
    let entries: Vec<Value> = entries.collect();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        match entries.is_empty() {
            true => drop(metadata.remove("managedFields")),
            false => drop(metadata.insert("managedFields".into(), entries.into())),
        }
    }
}

/// What entries are sorted by. apimachinery: `sortEncodedManagedFields`.
fn order(head: &Value) -> (bool, &str, &str, &str, &str) {
    let text = |key: &str| head[key].as_str().unwrap_or_default();
    (text("operation") != "Apply", text("time"), text("manager"), text("apiVersion"), text("subresource"))
}

/// Refuses an applied object that says who manages it or does not fit its kind.
///
/// # Errors
///
/// 400 for the first, 500 for the second.
pub(crate) fn fits(applied: &Value, schema: &Schema) -> Result<()> {
    if applied["metadata"]["managedFields"].is_array() {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    check::check(applied, schema).map_err(|fault| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (meta, version) = (&applied["metadata"], text(&applied["apiVersion"]));
        // Kubernetes always puts a slash before the version, be there a group or not.
        let version = if version.contains('/') { version } else { format!("/{version}") };
        ApiError::new(
            500,
            "",
            format!(
                "failed to create typed patch object ({}/{}; {version}, Kind={}): {fault}",
                text(&meta["namespace"]),
                text(&meta["name"]),
                text(&applied["kind"])
            ),
        )
    })
}

/// What `live` becomes when `applied` is applied: with every field of it, and without those that this manager
/// applied before, does not any more, and nobody else owns.
///
/// # Errors
///
/// 400 when `applied` brings `managedFields`, 500 when a list of it names an item twice, 409 when it changes fields of others and is not forced.
pub(crate) fn apply(live: Option<&Value>, applied: &Value, request: &Request<'_>, schema: &Schema) -> Result<Value> {
    fits(applied, schema)?;
    let fields = request.reset.filter(Set::of(applied, Some(schema)).without_free());
    let Some(live) = live else {
        let mut made = applied.clone();
        write(&mut made, vec![Entry::new(request, "Apply", fields)]);
        return Ok(made);
    };
    let mut entries = read(live);
    if entries.is_empty() {
        // Nobody knows who set what is there; whoever it was must be asked before it changes.
        let unknown = Request { manager: "before-first-apply", subresource: None, ..*request };
        let difference = compare(&zero(schema), live, Some(schema));
        entries.push(Entry::new(&unknown, "Update", difference.changed.without_free()));
        entries.retain(|entry| !entry.fields.is_empty());
    }
    let mut merged = merge::merge(live, applied, Some(schema));
    let changed = compare(live, &merged, Some(schema)).changed.without_free().common(&fields);
    let mut conflicts = Vec::new();
    let allowed = if request.force { Set::default() } else { last_applied::owned(live, request.manager, schema) };
    for entry in entries.iter_mut().filter(|entry| !entry.is_of(request, "Apply")) {
        let mut conflict = entry.fields.common(&changed);
        let taken = conflict.clone();
        conflict.subtract(&allowed);
        if !request.force && !conflict.is_empty() {
            conflicts.push((entry.name(), conflict.paths()));
        }
        entry.fields.subtract(&taken);
    }
    if !conflicts.is_empty() {
        return Err(conflict(&mut conflicts));
    }
    let place = entries.iter().position(|entry| entry.is_of(request, "Apply"));
    let before = place.map(|i| std::mem::replace(&mut entries[i].fields, fields.clone())).unwrap_or_default();
    let mut gone = before.clone();
    gone.subtract(&fields);
    if !gone.is_empty() {
        let mut kept = fields.clone();
        entries.iter().for_each(|entry| kept.add(&entry.fields));
        remove(&mut merged, &gone, &kept, Some(schema));
    }
    let same = merged == *live;
    last_applied::renew(&mut merged, applied, request.manager);
    match place {
        Some(_) if before == fields && merged == *live => return Ok(live.clone()),
        Some(i) => {
            // The time tells when the object changed, not when its owners did.
            if !same {
                entries[i].head["time"] = request.now.into();
            }
            entries[i].head["apiVersion"] = request.api_version.into();
        }
        None => {
            let mut entry = Entry::new(request, "Apply", fields);
            if same && let Value::Object(head) = &mut entry.head {
                head.remove("time");
            }
            entries.push(entry);
        }
    }
    write(&mut merged, entries);
    Ok(merged)
}

/// The object before there was any: what the API's types write without being told anything.
fn zero(schema: &Schema) -> Value {
    let mut nothing = json!({});
    schema.canonical(&mut nothing, None);
    nothing
}

fn conflict(conflicts: &mut [(String, Vec<String>)]) -> ApiError {
    conflicts.sort();
    let count: usize = conflicts.iter().map(|(_, paths)| paths.len()).sum();
    let message = match &*conflicts {
        [(name, paths)] if count == 1 => format!("Apply failed with 1 conflict: conflict with {name}: {}", paths[0]),
        all => {
            let said =
                |(name, paths): &(String, Vec<String>)| format!("conflicts with {name}:\n- {}", paths.join("\n- "));
            format!("Apply failed with {count} conflicts: {}", all.iter().map(said).collect::<Vec<_>>().join("\n"))
        }
    };
    let causes: Vec<_> = conflicts
        .iter()
        .flat_map(|(name, paths)| paths.iter().map(move |path| (name, path)))
        .map(|(name, path)| {
            json!({"reason": "FieldManagerConflict", "message": format!("conflict with {name}"), "field": path})
        })
        .collect();
    let mut error = ApiError::new(409, "Conflict", message);
    error.details = json!({"causes": causes});
    error
}

/// Notes in `after` that the manager set what differs from `before`, and that nobody owns what is gone.
pub(crate) fn record_update(before: Option<&Value>, after: &mut Value, request: &Request<'_>, schema: &Schema) {
    let nothing = if before.is_none() { zero(schema) } else { Value::Null };
    let before_value = before.unwrap_or(&nothing);
    let given = &after["metadata"]["managedFields"];
    let reset = before.is_some_and(|b| b["metadata"]["managedFields"].is_array())
        && given.as_array().is_some_and(|list| list.iter().all(|e| e.as_object().is_some_and(|e| e.is_empty())));
    if reset {
        write(after, Vec::new());
        return;
    }
    if given.as_array().is_some_and(|list| !list.iter().all(is_note)) {
        // What cannot be read is not taken: the notes stay as they were.
        let kept = before_value["metadata"]["managedFields"].clone();
        let Some(meta) = after["metadata"].as_object_mut() else { return };
        match kept.is_array() && before.is_some() {
            true => drop(meta.insert("managedFields".into(), kept)),
            false => drop(meta.remove("managedFields")),
        }
    }
    let given = &after["metadata"]["managedFields"];
    // Where nobody's fields are noted, updates begin no notes.
    if before.is_some() && given.as_array().is_none_or(Vec::is_empty) {
        return;
    }
    let mut difference = compare(before_value, after, Some(schema));
    difference.changed = request.reset.filter(difference.changed.without_free());
    difference.removed = difference.removed.without_free();
    if difference.is_empty() {
        return;
    }
    if difference.removed.is_empty() && before.is_some_and(|before| renew(before, after, request, &difference.changed))
    {
        return;
    }
    rewrite(before, after, request, difference);
}

fn rewrite(before: Option<&Value>, after: &mut Value, request: &Request<'_>, difference: merge::Difference) {
    let mut entries = if before.is_some() { read(after) } else { Vec::new() };
    for entry in &mut entries {
        if !entry.is_of(request, "Update") {
            entry.fields.subtract(&difference.changed);
        }
        entry.fields.subtract_deep(&difference.removed);
    }
    match entries.iter_mut().find(|entry| entry.is_of(request, "Update")) {
        _ if difference.changed.is_empty() => {}
        Some(entry) => {
            entry.fields.add(&difference.changed);
            entry.head["time"] = request.now.into();
        }
        None => entries.push(Entry::new(request, "Update", difference.changed)),
    }
    write(after, entries);
}

/// Sets the time alone when the manager owns all that changed and nobody else owns any of it, which is so for every
/// heartbeat; reading and writing all sets again would cost more than the rest of the request.
fn renew(before: &Value, after: &mut Value, request: &Request<'_>, changed: &Set) -> bool {
    let entries = &before["metadata"]["managedFields"];
    if after["metadata"]["managedFields"] != *entries {
        return false;
    }
    let is_own = |entry: &Value| {
        entry["manager"] == request.manager
            && entry["operation"] == "Update"
            && entry["apiVersion"] == request.api_version
            && entry["subresource"].as_str() == request.subresource
    };
    let mut own = None;
    for (i, entry) in entries.as_array().into_iter().flatten().enumerate() {
        let fields = &entry["fieldsV1"];
        if is_own(entry) && own.is_none() && changed.is_within(fields) {
            own = Some(i);
        } else if changed.touches(fields) {
            return false;
        }
    }
    let Some(i) = own else { return false };
    if let Some(list) = after["metadata"]["managedFields"].as_array_mut() {
        let mut entry = list.remove(i);
        entry["time"] = request.now.into();
        let place = list.iter().position(|other| order(other) > order(&entry)).unwrap_or(list.len());
        list.insert(place, entry);
    }
    true
}
