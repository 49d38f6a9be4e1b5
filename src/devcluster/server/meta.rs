//! The rules of `metadata` that hold for every kind.

use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::status::FieldError;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
    and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
    start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
    with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const TWO_SLASHES: &str = "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start \
    and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. \
    'example.com/MyName')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
    '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex \
    used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const ANNOTATIONS_LIMIT: usize = 256 << 10;

fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && !text.is_empty() && text.split('.').all(is_label_text)
}

fn is_label_text(text: &str) -> bool {
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(a), Some(z)) if fine(*a) && fine(*z))
        && bytes.iter().all(|b| fine(*b) || *b == b'-')
}

fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(a), Some(z)) if a.is_ascii_alphanumeric() && z.is_ascii_alphanumeric())
        && text.len() <= 63
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

/// What only the server may change, where a client changed it. apimachinery: `ValidateObjectMetaAccessorUpdate`.
pub(crate) fn immutable(new: &Value, old: &Value) -> Vec<FieldError> {
    let (new, old) = (&new["metadata"], &old["metadata"]);
    let mut errors = Vec::new();
    let mut keep = |key: &str| {
        if !new[key].is_null() && new[key] != old[key] {
            errors.push(FieldError::invalid(format!("metadata.{key}"), &new[key], "field is immutable"));
        }
    };
    // A deletion under way keeps its time, whatever the client says.
    if old["deletionTimestamp"].is_null() {
        keep("deletionTimestamp");
    }
    keep("deletionGracePeriodSeconds");
    errors
}

/// What is wrong with a qualified name such as `example.com/name`; `None` when it is fine.
pub(crate) fn qualified_name_fault(text: &str) -> Option<&'static str> {
    let name = match text.split_once('/') {
        None => text,
        Some((_, name)) if name.contains('/') => return Some(TWO_SLASHES),
        Some((prefix, name)) if is_subdomain(prefix) => name,
        Some(_) => return Some(SUBDOMAIN),
    };
    (!is_name_part(name)).then_some(QUALIFIED)
}

/// What is wrong with a label's value; `None` when it is fine.
pub(crate) fn label_value_fault(text: &str) -> Option<&'static str> {
    if text.len() > 63 {
        return Some("must be no more than 63 bytes");
    }
    (!text.is_empty() && !is_name_part(text)).then_some(LABEL_VALUE)
}

/// What is wrong with a DNS subdomain; `None` when it is fine.
pub(crate) fn subdomain_fault(text: &str) -> Option<&'static str> {
    (!is_subdomain(text)).then_some(SUBDOMAIN)
}

/// What is wrong with an object's name for its kind.
pub(crate) fn name_fault(kind: &Kind, name: &str) -> Option<String> {
    if kind.is("", "namespaces") || kind.is("", "services") {
        if name.len() > 63 {
            return Some("must be no more than 63 characters".into());
        }
        return match is_label_text(name) {
            true => None,
            false if is_subdomain(name) => Some("must not contain dots".into()),
            false => Some(LABEL.into()),
        };
    }
    if &*kind.group == "rbac.authorization.k8s.io" || kind.is("apiregistration.k8s.io", "apiservices") {
        // Such names are only kept from breaking paths.
        return match name {
            "." | ".." => Some(format!("may not be '{name}'")),
            _ if name.contains('/') => Some("may not contain '/'".into()),
            _ if name.contains('%') => Some("may not contain '%'".into()),
            _ => None,
        };
    }
    if name.len() > 253 {
        return Some("must be no more than 253 characters".into());
    }
    (!is_subdomain(name)).then(|| SUBDOMAIN.into())
}

/// Checks the metadata of an object that is about to be written.
pub(crate) fn validate(kind: &Kind, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let meta = &new["metadata"];
    let mut errors = Vec::new();
    if old.is_none() {
        let base = meta["generateName"].as_str().unwrap_or_default();
        // What follows makes a dash at the end fine.
        let masked = if base.len() > 1 && base.ends_with('-') { &base[..base.len() - 1] } else { base };
        // Of a namespace the made name alone is looked at.
        let looked_at = !base.is_empty() && !kind.is("", "namespaces");
        if let Some(fault) = name_fault(kind, masked).filter(|_| looked_at) {
            errors.push(FieldError::invalid("metadata.generateName", &json!(base), &fault));
        }
        match meta["name"].as_str().unwrap_or_default() {
            "" => errors.push(FieldError::required("metadata.name", "name or generateName is required")),
            name => {
                if let Some(fault) = name_fault(kind, name) {
                    errors.push(FieldError::invalid("metadata.name", &json!(name), &fault));
                }
            }
        }
    }
    labels(&meta["labels"], "metadata.labels", &mut errors);
    annotations(&meta["annotations"], &mut errors);
    // The API extensions' own kinds and custom ones take any qualified name. apimachinery against core validation.
    let generic = kind.custom || matches!(&*kind.group, "apiextensions.k8s.io" | "apiregistration.k8s.io");
    owners(&meta["ownerReferences"], &mut errors);
    finalizers(meta, old.map(|old| &old["metadata"]), generic, &mut errors);
    errors
}

fn labels(labels: &Value, field: &str, errors: &mut Vec<FieldError>) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        if let Some(fault) = qualified_name_fault(key) {
            errors.push(FieldError::invalid(field, &json!(key), fault));
        }
        if let Some(fault) = label_value_fault(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(field, value, fault));
        }
    }
}

fn annotations(annotations: &Value, errors: &mut Vec<FieldError>) {
    let mut total = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        if let Some(fault) = qualified_name_fault(&key.to_lowercase()) {
            errors.push(FieldError::invalid("metadata.annotations", &json!(key), fault));
        }
        total += key.len() + value.as_str().unwrap_or_default().len();
    }
    if total > ANNOTATIONS_LIMIT {
        let mut error = FieldError::required("metadata.annotations", "");
        error.reason = "FieldValueTooLong";
        error.message = format!("Too long: may not be more than {ANNOTATIONS_LIMIT} bytes");
        errors.push(error);
    }
}

fn finalizers(meta: &Value, old: Option<&Value>, generic: bool, errors: &mut Vec<FieldError>) {
    let list = |meta: &Value| -> Vec<String> {
        meta["finalizers"].as_array().into_iter().flatten().filter_map(|f| f.as_str().map(Into::into)).collect()
    };
    let wanted = list(meta);
    for finalizer in &wanted {
        if let Some(fault) = qualified_name_fault(finalizer) {
            errors.push(FieldError::invalid("metadata.finalizers", &json!(finalizer), fault));
        }
    }
    if wanted.iter().any(|f| f == "orphan") && wanted.iter().any(|f| f == "foregroundDeletion") {
        let fault = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(FieldError::invalid("metadata.finalizers", &json!(wanted), fault));
    }
    if let Some(old) = old.filter(|old| old["deletionTimestamp"].is_string()) {
        let had = list(old);
        let new: Vec<_> = wanted.iter().filter(|f| !had.contains(f)).map(String::as_str).collect();
        if !new.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                new.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ")
            );
            errors.push(FieldError::forbidden("metadata.finalizers", &detail));
        }
    }
    for (i, finalizer) in wanted.iter().enumerate().filter(|_| !generic) {
        let standard = matches!(finalizer.as_str(), "orphan" | "foregroundDeletion" | "kubernetes");
        if !standard && !finalizer.contains('/') {
            let fault = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(format!("metadata.finalizers[{i}]"), &json!(finalizer), fault));
        }
    }
}

fn owners(owners: &Value, errors: &mut Vec<FieldError>) {
    let mut controllers = Vec::new();
    for owner in owners.as_array().into_iter().flatten() {
        let field = "metadata.ownerReferences";
        let text = |key: &str| owner[key].as_str().unwrap_or_default();
        if text("apiVersion").is_empty() {
            let error = FieldError::invalid(format!("{field}.apiVersion"), &json!(""), "version must not be empty");
            errors.push(error);
        }
        for (key, detail) in
            [("kind", "must not be empty"), ("name", "must not be empty"), ("uid", "must not be empty")]
        {
            if text(key).is_empty() {
                errors.push(FieldError::invalid(format!("{field}.{key}"), &json!(""), detail));
            }
        }
        if text("kind") == "Event" && matches!(text("apiVersion"), "v1" | "events.k8s.io/v1") {
            let (group, version) = text("apiVersion").rsplit_once('/').unwrap_or(("", text("apiVersion")));
            let shown = shown_owners(&json!([owner]));
            let detail = format!("{group}/{version}, Kind=Event is disallowed from being an owner");
            errors.push(FieldError::invalid_shown(field, shown.trim_matches(['[', ']']), &detail));
        }
        if owner["controller"] == true {
            controllers.push(format!("{}/{}", text("kind"), text("name")));
        }
    }
    if controllers.len() > 1 {
        let detail = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {} and {}",
            controllers[0], controllers[1]
        );
        errors.push(FieldError::invalid_shown("metadata.ownerReferences", &shown_owners(owners), &detail));
    }
}

/// Owner references with their fields in the order of the type, as Kubernetes prints them.
fn shown_owners(owners: &Value) -> String {
    const FIELDS: [&str; 6] = ["apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion"];
    let shown = |owner: &Value| {
        let fields = FIELDS.iter().filter_map(|f| owner.get(f).map(|v| format!("{}:{v}", json!(f))));
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    };
    format!("[{}]", owners.as_array().into_iter().flatten().map(shown).collect::<Vec<_>>().join(","))
}

/// A generated name: what was asked for and five characters that spell no words.
pub(crate) fn generate_name(base: &str) -> String {
    use rand::Rng;
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut random = rand::rng();
    let mut end = base.len().min(63 - 5);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let tail: String = (0..5).map(|_| ALPHABET[random.random_range(0..ALPHABET.len())] as char).collect();
    format!("{}{tail}", &base[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_their_grammar() {
        for (name, fine) in
            [("a", true), ("a-b.c0", true), ("Bad_Name", false), ("-a", false), ("a..b", false), ("", false)]
        {
            assert_eq!(is_subdomain(name), fine, "{name}");
        }
        for (name, fine) in
            [("a", true), ("example.com/A_b", true), ("not valid!", false), ("/a", false), ("a/b/c", false)]
        {
            assert_eq!(qualified_name_fault(name).is_none(), fine, "{name}");
        }
    }

    #[test]
    fn generated_names_keep_their_base_and_fit() {
        assert!(generate_name("g-").starts_with("g-") && generate_name("g-").len() == 7);
        assert_eq!(generate_name(&"x".repeat(100)).len(), 63);
    }
}
