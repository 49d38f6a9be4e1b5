//! YAML answers, in the order and the layout of the API server's own.

use std::fmt::Write;

use serde_json::{Map, Value};

/// `value` as a YAML document.
pub(crate) fn write(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(fields) if !fields.is_empty() => object(&mut out, fields, 0),
        Value::Array(items) if !items.is_empty() => array(&mut out, items, 0),
        flat => {
            scalar(&mut out, flat, 0);
            out.push('\n');
        }
    }
    out
}

fn object(out: &mut String, fields: &Map<String, Value>, indent: usize) {
    let mut first = true;
    for (name, value) in sorted(fields) {
        if !std::mem::take(&mut first) {
            pad(out, indent);
        }
        text(out, name, 0, true);
        out.push(':');
        member(out, value, indent);
    }
}

/// Keys in the order of their bytes.
fn sorted(fields: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut all: Vec<_> = fields.iter().collect();
    all.sort_unstable_by_key(|(name, _)| *name);
    all
}

/// What follows a key's colon.
fn member(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            out.push('\n');
            pad(out, indent + 2);
            object(out, fields, indent + 2);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            pad(out, indent);
            array(out, items, indent);
        }
        flat => {
            out.push(' ');
            scalar(out, flat, indent + 2);
            out.push('\n');
        }
    }
}

fn array(out: &mut String, items: &[Value], indent: usize) {
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            pad(out, indent);
        }
        out.push_str("- ");
        match item {
            Value::Object(fields) if !fields.is_empty() => object(out, fields, indent + 2),
            Value::Array(inner) if !inner.is_empty() => array(out, inner, indent + 2),
            flat => {
                scalar(out, flat, indent + 2);
                out.push('\n');
            }
        }
    }
}

fn pad(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}

fn scalar(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        Value::String(content) => text(out, content, indent, false),
        // Null, booleans and numbers are the same in JSON; writing to a string cannot fail.
        flat => _ = write!(out, "{flat}"),
    }
}

fn text(out: &mut String, content: &str, indent: usize, key: bool) {
    if content.contains('\n') && !key && is_printable(content) && !content.starts_with([' ', '\n']) {
        out.push('|');
        let body = content.trim_end_matches('\n');
        out.push_str(match content.len() - body.len() {
            0 => "-",
            1 => "",
            _ => "+",
        });
        for line in content.strip_suffix('\n').unwrap_or(content).split('\n') {
            out.push('\n');
            if !line.is_empty() {
                pad(out, indent);
                out.push_str(line);
            }
        }
    } else if !is_printable(content) || content.contains('\n') || is_ambiguous(content) {
        // A JSON string is a double-quoted YAML string.
        _ = write!(out, "{}", Value::from(content));
    } else if is_plain(content) {
        out.push_str(content);
    } else {
        _ = write!(out, "'{}'", content.replace('\'', "''"));
    }
}

fn is_printable(content: &str) -> bool {
    !content.chars().any(|c| c != '\n' && (c.is_control() || matches!(c, '\u{feff}' | '\u{2028}' | '\u{2029}')))
}

/// Whether a reader could take it for something other than a string.
fn is_ambiguous(content: &str) -> bool {
    let words = [
        "", "~", "null", "true", "false", "yes", "no", "on", "off", "y", "n", ".nan", ".inf", "-.inf", "+.inf", "<<",
        "=",
    ];
    let number = content.trim_start_matches(['+', '-', '.']).starts_with(|c: char| c.is_ascii_digit())
        && content.bytes().all(|b| b.is_ascii_hexdigit() || b"+-._:xXoObBTtZz ".contains(&b));
    number || words.contains(&content.to_ascii_lowercase().as_str())
}

fn is_plain(content: &str) -> bool {
    let first_fine = !content.starts_with(|c: char| " -?:,[]{}#&*!|>'\"%@`".contains(c))
        || content.starts_with(['-', '?', ':'])
            && content[1..].starts_with(|c: char| !c.is_whitespace() && !",[]{}".contains(c));
    first_fine && !content.ends_with([' ', ':']) && !content.contains(": ") && !content.contains(" #")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_are_laid_out_as_the_api_server_does() {
        let value = json!({"kind": "ConfigMap", "apiVersion": "v1", "items": [{"a": 1, "b": [[1], []]}, "x"],
            "data": {"t": "2026-01-01T00:00:00Z", "e": "", "n": "1", "m": "a\nb\n", "q": "a: b", "s": "- x", "p": "-x",
            "y": "yes", ".": {}}, "z": null});
        let want = "apiVersion: v1\ndata:\n  .: {}\n  e: \"\"\n  m: |\n    a\n    b\n  \"n\": \"1\"\n  p: -x\n  q: 'a: b'\n  \
            s: '- x'\n  t: \"2026-01-01T00:00:00Z\"\n  \"y\": \"yes\"\nitems:\n- a: 1\n  b:\n  - - 1\n  - []\n- x\n\
            kind: ConfigMap\nz: null\n";
        assert_eq!(write(&value), want);
    }

    fn tree() -> impl Strategy<Value = Value> {
        let text = prop_oneof!["[ -~\n]{0,12}", any::<String>(), "[0-9.:eExX+-]{0,6}"];
        let leaf = prop_oneof![text.prop_map(Value::from), any::<i64>().prop_map(Value::from), Just(Value::Null)];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[ -~]{0,8}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(value in tree()) {
            let read: Value = serde_saphyr::from_str(&write(&value)).unwrap();
            prop_assert_eq!(read, value);
        }
    }
}
