//! Rules in CEL: whether they compile, and whether the fields that they ask of `self` are there.

use kube_cel::CompilationError;
use serde_json::{Value, json};

use super::rules::is_transition;
use super::types::{self, Type};
use crate::status::FieldError;

const REASONS: &[&str] = &["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// Checks the rules of one level; the root has what every object has.
pub(super) fn check(source: &Value, root: bool, at: &dyn Fn(&str) -> String, errors: &mut Vec<FieldError>) {
    let rules = &source["x-kubernetes-validations"];
    let compiled = kube_cel::compile_schema(&json!({"x-kubernetes-validations": rules}));
    for (i, outcome) in compiled.validations.iter().enumerate() {
        let (rule, field) = (&rules[i], |name: &str| at(&format!("x-kubernetes-validations[{i}].{name}")));
        let text = rule["rule"].as_str().unwrap_or_default();
        if text.trim().is_empty() {
            errors.push(FieldError::required(field("rule"), "rule is not specified"));
            continue;
        }
        words(rule, source, &field, errors);
        let parsed = outcome.as_ref().err().filter(|error| matches!(error, CompilationError::Parse { .. }));
        let refused = match parsed {
            Some(error) => {
                let said = error.to_string();
                let fault = said.find("ERROR: ").map_or(said.clone(), |at| located(&said[at..], text));
                Some(format!("compilation failed: {fault}"))
            }
            None => match typed(text, rule, source, root) {
                Err(fault) => Some(format!("compilation failed: {fault}")),
                Ok(Type::Bool | Type::Dyn) => None,
                Ok(_) => Some("cel expression must evaluate to a bool".to_owned()),
            },
        };
        if let Some(refused) = refused {
            errors.push(FieldError::invalid_shown(field("rule"), &shown(rule), &refused));
        }
        let message = rule["messageExpression"].as_str().filter(|text| !text.is_empty());
        let refused = message.and_then(|message| match typed(message, rule, source, root) {
            Err(fault) => Some(format!("messageExpression compilation failed: {fault}")),
            Ok(Type::Text | Type::Dyn) => None,
            Ok(_) => Some("messageExpression must evaluate to a string".to_owned()),
        });
        if let Some(refused) = refused {
            errors.push(FieldError::invalid_shown(field("messageExpression"), &shown(rule), &refused));
        }
    }
}

/// What there is in a rule beside its expressions. apiextensions: `ValidateCustomResourceDefinitionOpenAPISchema`.
fn words(rule: &Value, source: &Value, field: &dyn Fn(&str) -> String, errors: &mut Vec<FieldError>) {
    let text = |key: &str| rule[key].as_str().filter(|text| !text.is_empty());
    if let Some(message) = text("message") {
        if message.trim().is_empty() {
            let detail = "message must be non-empty if specified";
            errors.push(FieldError::invalid(field("message"), &rule["message"], detail));
        } else if message.trim().contains(['\n', '\r']) {
            errors.push(FieldError::invalid(field("message"), &rule["message"], "must not contain line breaks"));
        }
    }
    if rule["optionalOldSelf"] == true && !is_transition(text("rule").unwrap_or_default()) {
        let detail = "may not be set if oldSelf is not used in rule";
        errors.push(FieldError::invalid(field("optionalOldSelf"), &true.into(), detail));
    }
    if text("reason").is_some_and(|reason| !REASONS.contains(&reason)) {
        errors.push(FieldError::not_supported(field("reason"), &rule["reason"], REASONS));
    }
    if text("fieldPath").is_some_and(|path| !leads(path, source)) {
        errors.push(FieldError::invalid(field("fieldPath"), &rule["fieldPath"], "must be a valid path"));
    }
}

/// Whether a path of names leads to something in the schema; paths that are written otherwise are let through.
fn leads(path: &str, source: &Value) -> bool {
    if path.contains(['[', '\'']) {
        return true;
    }
    let Some(names) = path.strip_prefix('.') else { return false };
    let mut schema = source;
    for name in names.split('.') {
        schema = match &schema["additionalProperties"] {
            all @ Value::Object(_) => all,
            _ => &schema["properties"][name],
        };
    }
    schema.is_object()
}

/// The type of an expression over the schema, or what is wrong with it.
fn typed<'a>(text: &str, rule: &Value, source: &'a Value, root: bool) -> Result<Type<'a>, String> {
    let this = Type::of(source, root).unwrap_or(Type::Dyn);
    let before = if rule["optionalOldSelf"] == true { Type::Dyn } else { this.clone() };
    types::check(text, &[("self", this), ("oldSelf", before)]).map_err(|faults| {
        let said = faults.iter().map(|fault| {
            let above = &text[..fault.at];
            let (line, start) = (above.matches('\n').count() + 1, above.rfind('\n').map_or(0, |at| at + 1));
            let column = above[start..].chars().count() + 1;
            located(&format!("ERROR: <input>:{line}:{column}: {}", fault.said), text)
        });
        said.collect::<Vec<_>>().join("\n")
    })
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
    // As Go writes JSON.
    let safe = |text: &str| text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    let text = |key: &str| safe(&json!(rule[key].as_str().unwrap_or_default()).to_string());
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

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(rule: &str) -> Option<String> {
        let short = |limit: u8| json!({"type": "string", "maxLength": limit});
        let source = json!({"type": "object", "properties": {"a": {"type": "integer"}, "f": {"type": "number"},
            "s": short(10), "b": {"type": "boolean"}, "d": {"type": "string", "format": "duration"},
            "l": {"type": "array", "items": short(5)}, "m": {"type": "object", "additionalProperties": short(5)},
            "o": {"type": "object", "properties": {"p": short(5), "in": {"type": "integer"}, "a-b": {"type": "integer"}}},
            "io": {"x-kubernetes-int-or-string": true},
            "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
        match typed(rule, &json!({}), &source, false) {
            Ok(Type::Bool | Type::Dyn) => None,
            Ok(other) => Some(other.to_string()),
            Err(fault) => Some(fault.lines().next().unwrap_or_default().replace("ERROR: <input>:1:", "")),
        }
    }

    #[test]
    fn rules_over_the_types_of_their_schema_are_taken() {
        for rule in [
            "self.l.exists(x, x == 'a')",
            "self.m.k == 'v' && self.m['k'] != 'x'",
            "self.s in self.l || 'k' in self.m",
            "self.f > 1 && self.a < self.f",
            "self.l.map(x, x.size()).all(y, y > 0)",
            "self.d > duration('1s')",
            "{'a':1}.a == 1",
            "self.io == 1 || self.io == 'all'",
            "oldSelf.a == self.a && self == oldSelf",
            "self.s.split(',').size() > 1",
            "quantity('1').isGreaterThan(quantity('2'))",
            "ip(self.s).family() == 4",
            "self.?o.?p.orValue('x') == 'x'",
            "dyn(self.a) == 'x' || type(self.a) == int",
            "optional.of(self.a).hasValue()",
            "self.o.__in__ == 1 && self.o.a__dash__b == -1",
            r"self.s.matches('^a\\'b$') // as said",
            "has(self.o.p) ? self.o.p.startsWith('x') : true",
            "[[1], [2]].all(l, l.sum() > 0)",
            "self.b ? self.a == 1 : self.a != 0x1f",
        ] {
            assert_eq!(fault(rule), None, "{rule}");
        }
    }

    #[test]
    fn rules_against_the_types_of_their_schema_are_refused_in_words_of_kubernetes() {
        let overload =
            |at: u8, name: &str, of: &str| format!("{at}: found no matching overload for '{name}' applied to '{of}'");
        for (rule, wanted) in [
            ("self.a", "int".into()),
            ("self.a > 'x'", overload(8, "_>_", "(int, string)")),
            ("self.s.nope()", "12: undeclared reference to 'nope' (in container '')".into()),
            ("undefined_fn(self.s)", "13: undeclared reference to 'undefined_fn' (in container '')".into()),
            ("foo == 1", "1: undeclared reference to 'foo' (in container '')".into()),
            ("size(self.a) > 1", overload(5, "size", "(int)")),
            ("self.l.all(x, x > 1)", overload(17, "_>_", "(string, int)")),
            ("self.l['a'] == 'b'", overload(7, "_[_]", "(list(string), string)")),
            ("!self.a", overload(1, "!_", "(int)")),
            ("-self.s == 1", overload(1, "-_", "(string)")),
            ("self.a && true", "5: expected type 'bool' but found 'int'".into()),
            ("self.o.zz == 1", "7: undefined field 'zz'".into()),
            ("has(self.zz)", "4: undefined field 'zz'".into()),
            ("self.any.x == 1", "9: undefined field 'x'".into()),
            ("self.a in self.l", overload(8, "@in", "(int, list(string))")),
            ("self.s.startsWith(1)", overload(18, "startsWith", "string.(int)")),
            ("self.b ? 1 : 'x'", overload(8, "_?_:_", "(bool, int, string)")),
            ("self.l.filter(x, x)", overload(14, "_?_:_", "(string, list(string), list(string))")),
            ("[1,'a'].size() == 2", "4: expected type 'int' but found 'string'".into()),
            ("self.a == null", overload(8, "_==_", "(int, null)")),
            ("self.l.sum() == 1", overload(11, "sum", "list(string).()")),
            ("self.f % 2.0 == 0.0", overload(8, "_%_", "(double, double)")),
            ("self.l == [1]", overload(8, "_==_", "(list(string), list(int))")),
            ("self.s.size(1)", overload(12, "size", "string.(int)")),
        ] {
            assert_eq!(fault(rule), Some(wanted), "{rule}");
        }
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
