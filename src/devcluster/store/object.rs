//! One stored object: its bytes as they go over the wire, and the few places that selectors look at.

use bytes::Bytes;
use serde_json::Value;

/// Where an object lies: a namespace (empty for cluster-scoped kinds) and a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) namespace: Box<str>,
    pub(crate) name: Box<str>,
}

impl Key {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// A field that a field selector may name, and where its value lies.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Field {
    pub(crate) name: Box<str>,
    pub(crate) pointer: Box<str>,
    /// What an absent value reads as.
    pub(crate) default: &'static str,
    /// Where to look when there is nothing at `pointer`; empty for nowhere.
    pub(crate) otherwise: &'static str,
}

/// A version of an object. The JSON is kept ready to send; a parsed tree would be ten times its size.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) key: Key,
    pub(crate) revision: u64,
    pub(crate) uid: Box<str>,
    pub(crate) labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the resource's selectable fields, in their order.
    pub(crate) fields: Box<[Box<str>]>,
    pub(crate) json: Bytes,
    /// Where the digits of `metadata.resourceVersion` begin in `json`.
    revision_at: usize,
    revision_len: usize,
}

impl Object {
    /// The parsed object. Stored bytes were written by [`Draft`], so they always parse.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_slice(&self.json).unwrap_or_default()
    }

    /// `metadata` as it is written, without the rest having been parsed.
    pub(crate) fn metadata(&self) -> &str {
        #[derive(serde::Deserialize)]
        struct Head<'a> {
            #[serde(borrow)]
            metadata: &'a serde_json::value::RawValue,
        }
        // Stored objects always have it.
        serde_json::from_slice::<Head<'_>>(&self.json).map_or("{}", |head| head.metadata.get())
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| &**k == key).map(|(_, v)| &**v)
    }

    /// The same content under another revision, as the last word on a deleted object has.
    pub(crate) fn stamped(&self, revision: u64) -> Self {
        let end = self.revision_at + self.revision_len;
        let (json, revision_len) = splice(&self.json[..self.revision_at], &self.json[end..], revision);
        Self {
            key: self.key.clone(),
            revision,
            uid: self.uid.clone(),
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            json,
            revision_at: self.revision_at,
            revision_len,
        }
    }

    pub(crate) fn reindexed(&self, fields: &[Field]) -> Self {
        let mut object = self.stamped(self.revision);
        object.fields = read_fields(&self.value(), fields);
        object
    }

    pub(crate) fn size(&self) -> usize {
        self.json.len() + 256
    }
}

/// An object about to be written: everything but the revision, which only the commit knows.
#[derive(Debug)]
pub(crate) struct Draft {
    key: Key,
    uid: Box<str>,
    labels: Box<[(Box<str>, Box<str>)]>,
    fields: Box<[Box<str>]>,
    json: Vec<u8>,
    revision_at: usize,
}

impl Draft {
    pub(crate) fn new(value: &Value, fields: &[Field]) -> Self {
        let meta = &value["metadata"];
        let text = |key: &str| meta[key].as_str().unwrap_or_default();
        let labels = meta["labels"].as_object().map(|labels| {
            labels.iter().map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into())).collect()
        });
        let (json, revision_at) = encode(value);
        Self {
            key: Key::new(text("namespace"), text("name")),
            uid: text("uid").into(),
            labels: labels.unwrap_or_default(),
            fields: read_fields(value, fields),
            json,
            revision_at,
        }
    }

    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// Bytes of JSON, but for the digits of the revision.
    pub(crate) fn len(&self) -> usize {
        self.json.len()
    }

    /// Whether committing this would change nothing but the revision.
    pub(crate) fn same_as(&self, object: &Object) -> bool {
        let (at, end) = (object.revision_at, object.revision_at + object.revision_len);
        self.revision_at == at
            && self.json.len() + object.revision_len == object.json.len()
            && self.json[..at] == object.json[..at]
            && self.json[at..] == object.json[end..]
    }

    pub(crate) fn stamp(self, revision: u64) -> Object {
        let (json, revision_len) = splice(&self.json[..self.revision_at], &self.json[self.revision_at..], revision);
        Object {
            key: self.key,
            revision,
            uid: self.uid,
            labels: self.labels,
            fields: self.fields,
            json,
            revision_at: self.revision_at,
            revision_len,
        }
    }
}

fn splice(head: &[u8], tail: &[u8], revision: u64) -> (Bytes, usize) {
    let digits = revision.to_string();
    let mut json = Vec::with_capacity(head.len() + digits.len() + tail.len());
    json.extend_from_slice(head);
    json.extend_from_slice(digits.as_bytes());
    json.extend_from_slice(tail);
    (json.into(), digits.len())
}

/// The bytes of an object as they are stored, with the revision that it has.
pub(crate) fn encoded(value: &Value) -> Vec<u8> {
    let (mut json, at) = encode(value);
    if let Some(revision) = value["metadata"]["resourceVersion"].as_str() {
        json.splice(at..at, revision.bytes());
    }
    json
}

/// Serializes with an empty `resourceVersion` and says where its digits belong.
fn encode(value: &Value) -> (Vec<u8>, usize) {
    fn entry(out: &mut Vec<u8>, key: &str, value: &Value) {
        if !matches!(out.last(), Some(b'{')) {
            out.push(b',');
        }
        // Writing a string or a tree of JSON values into memory has no way to fail.
        let _ = serde_json::to_writer(&mut *out, key);
        out.push(b':');
        let _ = serde_json::to_writer(&mut *out, value);
    }
    let mut out = Vec::with_capacity(512);
    let mut at = 0;
    out.push(b'{');
    // What the object is comes first, as the API's own types write it: lists leave it out.
    for key in ["kind", "apiVersion"] {
        if let Some(member) = value.get(key) {
            entry(&mut out, key, member);
        }
    }
    let members = value.as_object().into_iter().flatten();
    for (key, member) in members.filter(|(key, _)| !matches!(key.as_str(), "kind" | "apiVersion")) {
        if key != "metadata" {
            entry(&mut out, key, member);
            continue;
        }
        if out.len() > 1 {
            out.push(b',');
        }
        out.extend_from_slice(b"\"metadata\":{");
        for (key, member) in member.as_object().into_iter().flatten().filter(|(k, _)| *k != "resourceVersion") {
            entry(&mut out, key, member);
        }
        if !matches!(out.last(), Some(b'{')) {
            out.push(b',');
        }
        out.extend_from_slice(b"\"resourceVersion\":\"");
        at = out.len();
        out.extend_from_slice(b"\"}");
    }
    out.push(b'}');
    (out, at)
}

fn read_fields(value: &Value, fields: &[Field]) -> Box<[Box<str>]> {
    let read = |field: &Field| -> Box<str> {
        let set = |value: &&Value| !value.is_null() && **value != "";
        let found = value.pointer(&field.pointer);
        let other = (!field.otherwise.is_empty()).then(|| value.pointer(field.otherwise)).flatten();
        match found.filter(set).or(other).or(found) {
            Some(Value::String(s)) => s.as_str().into(),
            Some(Value::Null) | None => field.default.into(),
            Some(other) => other.to_string().into(),
        }
    };
    fields.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn revision_is_spliced_into_the_bytes() {
        let value = json!({"kind": "A", "metadata": {"name": "n", "resourceVersion": "7", "uid": "u"}, "spec": {}});
        let object = Draft::new(&value, &[]).stamp(41);
        assert_eq!(object.value()["metadata"]["resourceVersion"], "41");
        let later = object.stamped(1234);
        assert_eq!(later.value()["metadata"]["resourceVersion"], "1234");
        assert_eq!(later.value()["metadata"]["uid"], "u");
        assert!(Draft::new(&later.value(), &[]).same_as(&object));
    }

    #[test]
    fn fields_read_absent_values_as_their_default() {
        let field = |name: &str, pointer: &str| Field {
            name: name.into(),
            pointer: pointer.into(),
            default: "",
            otherwise: "",
        };
        let value = json!({"metadata": {"name": "n"}, "spec": {"on": true}});
        let draft = Draft::new(&value, &[field("spec.on", "/spec/on"), field("spec.x", "/spec/x")]);
        assert_eq!(draft.fields.iter().map(|f| &**f).collect::<Vec<_>>(), ["true", ""]);
    }
}
