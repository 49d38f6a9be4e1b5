//! Small steps shared by all kinds: reading fields, filling them in, and the grammars of names.

use serde_json::{Value, json};

use crate::status::FieldError;

pub(crate) const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
    and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
    with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. \
    'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

/// The string at `key`, empty when it is absent.
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// The elements of a list, none when it is absent.
pub(crate) fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The object elements of a list, to be changed.
pub(crate) fn items_mut<'a>(value: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> + use<'a> {
    value.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter(|item| item.is_object())
}

/// The entries of a map, none when it is absent.
pub(crate) fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// The object at `key`, if there is one.
pub(crate) fn child<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    value.get_mut(key).filter(|child| child.is_object())
}

/// Sets `key` unless it has a value. An empty string counts as none, as it does for Go's strings.
pub(crate) fn fill(value: &mut Value, key: &str, default: impl Into<Value>) {
    let Some(map) = value.as_object_mut() else { return };
    if map.get(key).is_none_or(|v| v.is_null() || v == "") {
        map.insert(key.into(), default.into());
    }
}

/// Sets `key` unless it has a value other than zero, for numbers that Go can't tell from absent ones.
pub(crate) fn fill_zero(value: &mut Value, key: &str, default: i64) {
    if value[key].as_i64().unwrap_or(0) == 0
        && let Some(map) = value.as_object_mut()
    {
        map.insert(key.into(), default.into());
    }
}

/// Whether two values are the same to a client: absent, null and empty are one.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    let empty = |v: &Value| match v {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    a == b || empty(a) && empty(b)
}

/// What is wrong with a DNS label; `None` when it is fine.
pub(crate) fn label_fault(name: &str) -> Option<&'static str> {
    if name.len() > 63 {
        return Some("must be no more than 63 characters");
    }
    if name.contains('.') && subdomain_fault(name).is_none() {
        return Some("must not contain dots");
    }
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    let ends = matches!((bytes.first(), bytes.last()), (Some(a), Some(z)) if fine(*a) && fine(*z));
    (!ends || !bytes.iter().all(|b| fine(*b) || *b == b'-')).then_some(LABEL)
}

pub(crate) use crate::server::meta::{label_value_fault, subdomain_fault};

/// Whether a value is an address of either family.
pub(crate) fn is_address(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.parse::<std::net::IpAddr>().is_ok())
}

/// Whether a value is a network, as in `10.9.8.0/24`.
pub(crate) fn is_cidr(value: &Value) -> bool {
    let valid = |text: &str| {
        let (ip, bits) = text.split_once('/')?;
        let ip: std::net::IpAddr = ip.parse().ok()?;
        let bits: u8 = bits.parse().ok()?;
        (bits <= if ip.is_ipv4() { 32 } else { 128 }).then_some(())
    };
    value.as_str().and_then(valid).is_some()
}

/// What is wrong with a port's name. apimachinery: `IsValidPortName`.
pub(crate) fn port_name_faults(name: &str) -> Vec<&'static str> {
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let rules = [
        (name.len() > 15, "must be no more than 15 characters"),
        (!name.bytes().all(fine), "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"),
        (!name.bytes().any(|b| b.is_ascii_lowercase()), "must contain at least one letter (a-z)"),
        (name.contains("--"), "must not contain consecutive hyphens"),
        (name.starts_with('-') || name.ends_with('-'), "must not begin or end with a hyphen"),
    ];
    rules.into_iter().filter(|(broken, _)| *broken).map(|(_, detail)| detail).collect()
}

/// What is wrong with a label selector. apimachinery: `ValidateLabelSelector`.
pub(crate) fn label_selector(selector: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (key, value) in entries(&selector["matchLabels"]) {
        if let Some(fault) = qualified_fault(key) {
            errors.push(FieldError::invalid(format!("{path}.matchLabels"), &json!(key), fault));
        }
        if let Some(fault) = label_value_fault(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(format!("{path}.matchLabels"), value, fault));
        }
    }
    for (i, rule) in items(&selector["matchExpressions"]).iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let values = items(&rule["values"]);
        match text(rule, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(format!("{path}.values"), detail));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(format!("{path}.values"), detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            operator => {
                let detail = "not a valid selector operator";
                errors.push(FieldError::invalid(format!("{path}.operator"), &json!(operator), detail));
            }
        }
        if let Some(fault) = qualified_fault(text(rule, "key")) {
            errors.push(FieldError::invalid(format!("{path}.key"), &json!(text(rule, "key")), fault));
        }
        for (j, value) in values.iter().enumerate() {
            if let Some(fault) = label_value_fault(value.as_str().unwrap_or_default()) {
                errors.push(FieldError::invalid(format!("{path}.values[{j}]"), value, fault));
            }
        }
    }
}

/// What is wrong with a qualified name such as `example.com/name`; `None` when it is fine.
pub(crate) fn qualified_fault(name: &str) -> Option<&'static str> {
    let part = match name.split_once('/') {
        None => name,
        Some((prefix, part)) if prefix.split('.').all(|label| label_fault(label).is_none()) => part,
        Some(_) => return Some("prefix part must be a lowercase RFC 1123 subdomain"),
    };
    if part.len() > 63 {
        return Some("name part must be no more than 63 bytes");
    }
    let bytes = part.as_bytes();
    let ends = matches!((bytes.first(), bytes.last()),
        (Some(a), Some(z)) if a.is_ascii_alphanumeric() && z.is_ascii_alphanumeric());
    (!ends || !bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))).then_some(QUALIFIED)
}

/// What is wrong with a key of a ConfigMap or Secret; `None` when it is fine.
pub(crate) fn config_key_fault(key: &str) -> Option<&'static str> {
    match key {
        "." => Some("must not be '.'"),
        ".." => Some("must not be '..'"),
        _ if key.starts_with("..") => Some("must not start with '..'"),
        _ if key.len() > 253 => Some("must be no more than 253 characters"),
        _ if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) => {
            Some(CONFIG_KEY)
        }
        _ => None,
    }
}

/// The list's field must be one of `allowed`; absent is left to whoever requires it.
pub(crate) fn one_of(value: &Value, key: &str, path: &str, allowed: &[&str], errors: &mut Vec<FieldError>) {
    if let Some(said) = value[key].as_str()
        && !allowed.contains(&said)
    {
        errors.push(FieldError::not_supported(format!("{path}.{key}"), &value[key], allowed));
    }
}

/// The number may not be negative.
pub(crate) fn not_negative(value: &Value, key: &str, path: &str, errors: &mut Vec<FieldError>) {
    if value[key].as_i64().is_some_and(|n| n < 0) {
        let detail = "must be greater than or equal to 0";
        errors.push(FieldError::invalid(format!("{path}.{key}"), &value[key], detail));
    }
}

/// The number must be a port.
pub(crate) fn port(value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if !value.as_i64().is_some_and(|n| (1..=65535).contains(&n)) {
        let value = if value.is_null() { &json!(0) } else { value };
        errors.push(FieldError::invalid(path, value, "must be between 1 and 65535, inclusive"));
    }
}

/// The name must be there, be a DNS label and be the first of its kind.
pub(crate) fn unique_name(item: &Value, path: &str, seen: &mut Vec<String>, errors: &mut Vec<FieldError>) {
    let (name, path) = (text(item, "name"), format!("{path}.name"));
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if let Some(fault) = label_fault(name) {
        errors.push(FieldError::invalid(path, &item["name"], fault));
    } else if seen.iter().any(|s| s == name) {
        errors.push(FieldError::duplicate(path, &item["name"]));
    } else {
        seen.push(name.into());
    }
}

/// A reference to something that is not there. apimachinery: `field.NotFound`.
pub(crate) fn not_found(path: impl Into<String>, value: &Value) -> FieldError {
    FieldError { field: path.into(), reason: "FieldValueNotFound", message: format!("Not found: {value}") }
}

/// More than `limit` bytes. apimachinery: `field.TooLong`.
pub(crate) fn too_long(path: impl Into<String>, limit: usize) -> FieldError {
    let message = format!("Too long: may not be more than {limit} bytes");
    FieldError { field: path.into(), reason: "FieldValueTooLong", message }
}

/// A field that may not change.
pub(crate) fn immutable(new: &Value, old: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if !same(new, old) {
        errors.push(FieldError::invalid(path, new, "field is immutable"));
    }
}
