//! Rules in CEL: whether they compile, and whether the fields that they ask of `self` are there.

use serde_json::{Value, json};

use crate::status::FieldError;

/// Checks the rules of one level; the root has what every object has.
pub(super) fn check(source: &Value, root: bool, at: &dyn Fn(&str) -> String, errors: &mut Vec<FieldError>) {
    let rules = &source["x-kubernetes-validations"];
    let compiled = kube_cel::compile_schema(&json!({"x-kubernetes-validations": rules}));
    for (i, outcome) in compiled.validations.iter().enumerate() {
        let (rule, field) = (&rules[i], at(&format!("x-kubernetes-validations[{i}].rule")));
        let text = rule["rule"].as_str().unwrap_or_default();
        if text.trim().is_empty() {
            errors.push(FieldError::required(field, "rule is not specified"));
            continue;
        }
        let fault = match outcome {
            Err(error) => {
                let said = error.to_string();
                Some(said.find("ERROR: ").map_or(said.clone(), |at| located(&said[at..], text)))
            }
            Ok(_) => undefined(text, source, root)
                .map(|(name, column)| located(&format!("ERROR: <input>:1:{column}: undefined field '{name}'"), text)),
        };
        if let Some(fault) = fault {
            errors.push(FieldError::invalid_shown(field, &shown(rule), &format!("compilation failed: {fault}")));
        }
    }
}

/// The fault with the line of the rule that it is in, and a mark below.
fn located(fault: &str, rule: &str) -> String {
    let fault = fault.trim_end();
    let mut place = fault.strip_prefix("ERROR: <input>:").unwrap_or_default().split(':');
    let mut number = || place.next().and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
    let (line, column) = (number(), number());
    match rule.lines().nth(line.wrapping_sub(1)) {
        Some(said) if !fault.contains('\n') => {
            format!("{fault}\n | {said}\n | {}^", ".".repeat(column.saturating_sub(1)))
        }
        _ => fault.to_owned(),
    }
}

/// A rule as Kubernetes prints its own type of it.
fn shown(rule: &Value) -> String {
    let text = |key: &str| json!(rule[key].as_str().unwrap_or_default());
    format!(
        r#"{{"Rule":{},"Message":{},"MessageExpression":{},"Reason":{},"FieldPath":{},"OptionalOldSelf":{}}}"#,
        text("rule"),
        text("message"),
        text("messageExpression"),
        rule["reason"],
        text("fieldPath"),
        rule["optionalOldSelf"]
    )
}

/// The first field that a rule asks of `self` or `oldSelf` and the schema does not have, with the column of its dot.
/// Only chains of plain names are followed: what else there is has types that the schema alone does not tell.
fn undefined(rule: &str, source: &Value, root: bool) -> Option<(String, usize)> {
    let bytes = blank_texts(rule);
    let name_at = |at: usize| {
        let is_name = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
        let length = bytes[at..].iter().take_while(|b| is_name(b)).count();
        std::str::from_utf8(&bytes[at..at + length]).unwrap_or_default()
    };
    let mut at = 0;
    while at < bytes.len() {
        let word = name_at(at);
        let alone = at == 0 || !matches!(bytes[at - 1], b'.' | b'?');
        if !alone || !matches!(word, "self" | "oldSelf") {
            at += word.len().max(1);
            continue;
        }
        at += word.len();
        let (mut schema, mut top) = (source, root);
        while bytes.get(at) == Some(&b'.') {
            let name = name_at(at + 1);
            let after = bytes.get(at + 1 + name.len());
            // Methods, and names that are written in another way, are none of the schema's.
            let open = schema["type"] != "object"
                || !schema["additionalProperties"].is_null()
                || schema["x-kubernetes-preserve-unknown-fields"] == true;
            if name.is_empty() || after == Some(&b'(') || name.contains("__") || open {
                break;
            }
            let given = top && matches!(name, "apiVersion" | "kind" | "metadata");
            if given {
                break;
            }
            if schema["properties"][name].is_null() {
                return Some((name.to_owned(), at + 1));
            }
            (schema, top) = (&schema["properties"][name], false);
            at += 1 + name.len();
        }
    }
    None
}

/// The rule with blanks for what is between quotes.
fn blank_texts(rule: &str) -> Vec<u8> {
    let (mut quote, mut escaped) = (None, false);
    let blank = |byte: u8| match quote {
        Some(_) if escaped => {
            escaped = false;
            b' '
        }
        Some(end) => {
            escaped = byte == b'\\';
            if byte == end {
                quote = None;
            }
            b' '
        }
        None if matches!(byte, b'"' | b'\'') => {
            quote = Some(byte);
            b' '
        }
        None if byte.is_ascii() => byte,
        None => b' ',
    };
    rule.bytes().map(blank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_are_not_there_are_found() {
        let schema = json!({"type": "object", "properties": {"n": {"type": "object"}, "a": {"type": "object", "properties": {"b": {"type": "string"}}},
            "m": {"type": "object", "additionalProperties": {"type": "string"}}, "l": {"type": "array"}}});
        for (rule, wanted) in [
            ("self.a.b == 'self.x'", None),
            ("self.foo", Some(("foo", 5))),
            ("has(self.a.c)", Some(("c", 11))),
            ("self.m.anything == '' && self.l.all(x, x.y)", None),
            ("size(self.l) > 0 && oldSelf.zz == 1", Some(("zz", 28))),
            ("self.a.b.size() > 0", None),
            ("self.n.x", Some(("x", 7))),
        ] {
            let found = undefined(rule, &schema, false);
            assert_eq!(found, wanted.map(|(name, column): (&str, usize)| (name.to_owned(), column)), "{rule}");
        }
        assert_eq!(undefined("self.metadata.name == 'a' && self.kind == 'b'", &schema, true), None);
    }

    #[test]
    fn rules_that_do_not_compile_are_shown_with_their_place() {
        let source = json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.foo"}, {"rule": ""}, {"rule": "1 +"}]});
        let mut errors = Vec::new();
        check(&source, false, &|name| name.to_owned(), &mut errors);
        let messages: Vec<_> = errors.iter().map(|error| error.message.as_str()).collect();
        assert!(messages[0].ends_with("undefined field 'foo'\n | self.foo\n | ....^"), "{messages:?}");
        assert_eq!(messages[1], "Required value: rule is not specified");
        assert!(messages[2].contains("compilation failed: ERROR: <input>:1:4: Syntax error"), "{messages:?}");
    }
}
