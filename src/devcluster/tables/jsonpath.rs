//! The JSONPath that printer columns use: `.a.b`, `['a']`, `[0]`, `[-1]`, `[*]` and `[?(@.type=="Ready")]`.
//!
//! The crates for RFC 9535 want a leading `$` and refuse Kubernetes' looser spelling, so this small one stays.

use serde_json::Value;

/// A parsed path.
#[derive(Debug, PartialEq)]
pub(super) struct Path(Vec<Step>);

#[derive(Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    Filter { left: Path, op: Op, right: Value },
    Exists(Path),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

impl Path {
    /// `None` for what this subset cannot read.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
        let mut rest = text.strip_prefix('$').unwrap_or(text);
        let mut steps = Vec::new();
        while let Some(first) = rest.chars().next() {
            if first == '[' {
                let end = closing(rest)?;
                steps.push(bracket(rest[1..end].trim())?);
                rest = &rest[end + 1..];
                continue;
            }
            rest = rest.strip_prefix('.').unwrap_or(rest);
            let (name, after) = field(rest)?;
            match name.as_str() {
                "" if after.starts_with('[') => {}
                "" if after.is_empty() => {}
                "" => return None,
                "*" => steps.push(Step::All),
                _ => steps.push(Step::Field(name)),
            }
            rest = after;
        }
        Some(Self(steps))
    }

    /// All values at this path, in order.
    pub(super) fn find<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        let mut at = vec![root];
        for step in &self.0 {
            at = at.into_iter().flat_map(|v| step.apply(v)).collect();
        }
        at
    }
}

impl Step {
    fn apply<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let children = || match value {
            Value::Array(items) => items.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        };
        match self {
            Self::Field(name) => value.get(name).into_iter().collect(),
            Self::Index(i) => {
                let Some(items) = value.as_array() else { return Vec::new() };
                let at = if *i < 0 { items.len() as i64 + i } else { *i };
                usize::try_from(at).ok().and_then(|at| items.get(at)).into_iter().collect()
            }
            Self::All => children(),
            Self::Exists(path) => children().into_iter().filter(|v| !path.find(v).is_empty()).collect(),
            Self::Filter { left, op, right } => children()
                .into_iter()
                .filter(|v| left.find(v).first().is_some_and(|got| compare(got, *op, right)))
                .collect(),
        }
    }
}

fn compare(got: &Value, op: Op, want: &Value) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let order = match (got.as_f64(), want.as_f64()) {
        (Some(a), Some(b)) => a.partial_cmp(&b),
        _ => match (got.as_str(), want.as_str()) {
            (Some(a), Some(b)) => Some(a.cmp(b)),
            _ => (got == want).then_some(Equal),
        },
    };
    match op {
        Op::Eq => order == Some(Equal),
        Op::Ne => order != Some(Equal),
        Op::Lt => order == Some(Less),
        Op::Le => matches!(order, Some(Less | Equal)),
        Op::Gt => order == Some(Greater),
        Op::Ge => matches!(order, Some(Greater | Equal)),
    }
}

/// The bracket that closes the one at the start, quotes and nesting respected.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    let mut escaped = false;
    for (i, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') => {
                depth -= 1;
                if depth == 0 {
                    return Some(i);
                }
            }
            _ => {}
        }
    }
    None
}

/// A name up to the next dot or bracket; `\.` is a dot in the name.
fn field(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '.' | '[' => return Some((name, &text[i..])),
            '\\' => name.push(chars.next()?.1),
            c => name.push(c),
        }
    }
    Some((name, ""))
}

fn bracket(inner: &str) -> Option<Step> {
    if inner == "*" {
        return Some(Step::All);
    }
    if let Some(filter) = inner.strip_prefix("?(").and_then(|t| t.strip_suffix(')')) {
        return self::filter(filter.trim());
    }
    if let Some(name) = unquote(inner) {
        return Some(Step::Field(name));
    }
    inner.parse().ok().map(Step::Index)
}

fn filter(text: &str) -> Option<Step> {
    let path = |t: &str| Path::parse(t.trim().strip_prefix('@')?);
    for (sign, op) in [("==", Op::Eq), ("!=", Op::Ne), ("<=", Op::Le), (">=", Op::Ge), ("<", Op::Lt), (">", Op::Gt)] {
        if let Some((left, right)) = text.split_once(sign) {
            let right = right.trim();
            let right = match unquote(right) {
                Some(text) => Value::String(text),
                None => serde_json::from_str(right).ok()?,
            };
            return Some(Step::Filter { left: path(left)?, op, right });
        }
    }
    path(text).map(Step::Exists)
}

fn unquote(text: &str) -> Option<String> {
    let quoted = |q: char| text.strip_prefix(q)?.strip_suffix(q);
    quoted('\'').or_else(|| quoted('"')).map(|t| t.replace("\\.", ".").replace("\\\"", "\"").replace("\\'", "'"))
}

/// A value as a cell shows it: strings bare, everything else as JSON.
pub(super) fn print(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_find_what_printer_columns_ask_for() {
        let root = json!({
            "spec": {"a.b": 1, "list": [{"n": "x", "v": 1}, {"n": "y", "v": 5}], "deep": {"ok": true}},
            "metadata": {"annotations": {"example.com/x": "annotated"}},
        });
        for (path, want) in [
            (".spec.deep.ok", json!([true])),
            ("{.spec.deep.ok}", json!([true])),
            ("$.spec.deep.ok", json!([true])),
            (".spec['a.b']", json!([1])),
            (".spec.a\\.b", json!([1])),
            (".metadata.annotations.example\\.com/x", json!(["annotated"])),
            (".metadata.annotations['example\\.com/x']", json!(["annotated"])),
            (".spec.list[0].n", json!(["x"])),
            (".spec.list[-1].n", json!(["y"])),
            (".spec.list[*].n", json!(["x", "y"])),
            (".spec.list[?(@.n==\"y\")].v", json!([5])),
            (".spec.list[?(@.n == 'x')].v", json!([1])),
            (".spec.list[?(@.v>2)].n", json!(["y"])),
            (".spec.list[?(@.v)].n", json!(["x", "y"])),
            (".spec.none.at.all", json!([])),
            (".spec.list[7]", json!([])),
        ] {
            let got = Path::parse(path).unwrap_or_else(|| panic!("{path} parses")).find(&root);
            assert_eq!(json!(got), want, "{path}");
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for path in [".a[", ".a[b]", ".a[?(b)]", ".a..b"] {
            assert_eq!(Path::parse(path), None, "{path}");
        }
    }
}
