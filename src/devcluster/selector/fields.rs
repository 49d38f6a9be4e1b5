//! The grammar of field selectors. apimachinery: `fields.ParseSelector`.

use crate::status::{ApiError, Result};
use crate::store::Field;

/// Name, value, and whether they must be equal, of each requirement.
pub(super) fn parse(text: &str) -> Result<Vec<(String, String, bool)>> {
    let mut found = Vec::new();
    for part in split(text) {
        if part.is_empty() {
            continue;
        }
        let fault = || ApiError::bad_request(format!("invalid selector: '{text}'; can't understand '{part}'"));
        let at = unescaped(part, |rest| rest.starts_with("!=") || rest.starts_with('=')).ok_or_else(fault)?;
        let (name, rest) = part.split_at(at);
        let (value, equal) = match rest.strip_prefix("!=") {
            Some(value) => (value, false),
            None => (rest.trim_start_matches("==").trim_start_matches('='), true),
        };
        let value = unescape(value).map_err(ApiError::bad_request)?;
        found.push((name.trim().to_owned(), value.trim().to_owned(), equal));
    }
    Ok(found)
}

/// A field that its kind cannot be selected by.
pub(super) fn unknown(name: &str, known: &[Field]) -> ApiError {
    let ordinary = known.iter().all(|field| field.name.starts_with("metadata."));
    ApiError::bad_request(match ordinary {
        true => format!("{name:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""),
        false => format!("field label not supported: {name}"),
    })
}

/// Where `wanted` is true of the rest for the first time, backslashes not counted.
fn unescaped(text: &str, wanted: impl Fn(&str) -> bool) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if wanted(&text[at..]) {
            return Some(at);
        }
    }
    None
}

fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut rest) = (Vec::new(), text);
    while let Some(at) = unescaped(rest, |rest| rest.starts_with(',')) {
        parts.push(&rest[..at]);
        rest = &rest[at + 1..];
    }
    parts.push(rest);
    parts
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    let sequence: String = std::iter::once('\\').chain(other).collect();
                    return Err(format!("invalid field selector: invalid escape sequence: {sequence}"));
                }
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped character in value: {c}")),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_on_fields() {
        let one = |name: &str, value: &str, equal| (name.to_owned(), value.to_owned(), equal);
        assert_eq!(parse("").unwrap(), []);
        let parsed = parse("a.b=c,d!=,e==f\\,g\\=h").unwrap();
        assert_eq!(parsed, [one("a.b", "c", true), one("d", "", false), one("e", "f,g=h", true)]);
        for (bad, said) in [
            ("a", "invalid selector: 'a'; can't understand 'a'"),
            ("a=b,c", "invalid selector: 'a=b,c'; can't understand 'c'"),
            ("a=b=c", "unescaped character"),
            ("a=b\\x", "invalid escape sequence: \\x"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.code == 400 && error.message.contains(said), "{bad}: {error}");
        }
    }
}
