//! Label and field selectors.

use crate::status::{ApiError, Result};
use crate::store::{Field, Interest, Object};

/// One requirement on labels.
#[derive(Clone, Debug, PartialEq)]
enum Label {
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Greater(String, i64),
    Less(String, i64),
}

/// A conjunction of requirements on labels and fields.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Selector {
    labels: Vec<Label>,
    /// Position among the resource's fields, value, and whether it must be equal.
    fields: Vec<(usize, Box<str>, bool)>,
    name: Option<Box<str>>,
    namespace: Option<Box<str>>,
}

impl Selector {
    pub(crate) fn parse(labels: Option<&str>, fields: Option<&str>, known: &[Field]) -> Result<Self> {
        let mut selector = Self { labels: parse_labels(labels.unwrap_or_default())?, ..Self::default() };
        for part in fields.unwrap_or_default().split(',').filter(|p| !p.trim().is_empty()) {
            let (name, value, equal) = if let Some((name, value)) = part.split_once("!=") {
                (name, value, false)
            } else if let Some((name, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (name, value, true)
            } else {
                return Err(ApiError::bad_request(format!("invalid selector: '{part}'; can't understand '{part}'")));
            };
            let (name, value) = (name.trim(), value.trim());
            let Some(at) = known.iter().position(|f| &*f.name == name) else {
                let message = format!("field label not supported: {name}");
                return Err(ApiError::bad_request(message));
            };
            selector.fields.push((at, value.into(), equal));
            match name {
                "metadata.name" if equal => selector.name = Some(value.into()),
                "metadata.namespace" if equal => selector.namespace = Some(value.into()),
                _ => {}
            }
        }
        Ok(selector)
    }

    pub(crate) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub(crate) fn matches(&self, object: &Object) -> bool {
        self.fields.iter().all(|(at, value, equal)| (object.fields.get(*at) == Some(value)) == *equal)
            && self.labels.iter().all(|label| label.matches(|key| object.label(key)))
    }

    /// The narrowest index that finds every event this selector may match.
    pub(crate) fn interest(&self, namespace: Option<&str>) -> Interest {
        if let Some(name) = &self.name {
            return Interest::Name(name.clone());
        }
        // Fields such as spec.nodeName select few objects; the first two are the name and the namespace.
        let narrow = self.fields.iter().find(|(at, value, equal)| *equal && *at > 1 && !value.is_empty());
        match (narrow, namespace.or(self.namespace())) {
            (Some((at, value, _)), _) => Interest::Field(*at, value.clone()),
            (None, Some(namespace)) => Interest::Namespace(namespace.into()),
            (None, None) => Interest::All,
        }
    }
}

impl Label {
    fn matches<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        let number = |key: &str| get(key).and_then(|v| v.parse::<i64>().ok());
        match self {
            Self::Exists(key) => get(key).is_some(),
            Self::Absent(key) => get(key).is_none(),
            Self::In(key, values) => get(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Self::NotIn(key, values) => get(key).is_none_or(|v| values.iter().all(|w| w != v)),
            Self::Greater(key, than) => number(key).is_some_and(|v| v > *than),
            Self::Less(key, than) => number(key).is_some_and(|v| v < *than),
        }
    }
}

/// The one object that a field selector leaves, which is what authorization then is about: a role may grant lists and
/// watches of objects by name. apiserver: `RequestInfoFactory`.
pub(crate) fn required_name(fields: &str) -> Option<&str> {
    required(fields, "metadata.name")
        .filter(|value| !value.is_empty() && !matches!(*value, "." | "..") && !value.contains(['/', '%']))
}

/// The value that a field selector demands of a field.
pub(crate) fn required<'a>(fields: &'a str, name: &str) -> Option<&'a str> {
    fields.split(',').find_map(|part| {
        let (field, value) = part.split_once("==").or_else(|| part.split_once('='))?;
        (field.trim() == name).then_some(value.trim())
    })
}

/// Whether a `metav1.LabelSelector` (as JSON) selects labels; `None` when it is malformed.
pub(crate) fn label_selector_matches<'a>(
    selector: &serde_json::Value,
    get: impl Fn(&str) -> Option<&'a str>,
) -> Option<bool> {
    let mut matched = true;
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        matched &= get(key) == value.as_str();
    }
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str()?.to_owned();
        let values =
            expression["values"].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(Into::into)).collect();
        let label = match expression["operator"].as_str()? {
            "In" => Label::In(key, values),
            "NotIn" => Label::NotIn(key, values),
            "Exists" => Label::Exists(key),
            "DoesNotExist" => Label::Absent(key),
            _ => return None,
        };
        matched &= label.matches(&get);
    }
    Some(matched)
}

fn parse_labels(text: &str) -> Result<Vec<Label>> {
    let mut labels = Vec::new();
    for part in split(text) {
        let part = part.trim();
        if part.is_empty() {
            if text.trim().is_empty() {
                continue;
            }
            return Err(unparsable(text));
        }
        labels.push(parse_label(part).ok_or_else(|| unparsable(part))?);
    }
    Ok(labels)
}

fn unparsable(part: &str) -> ApiError {
    ApiError::bad_request(format!("unable to parse requirement: {part:?} is no valid requirement on labels"))
}

/// Splits at commas outside of parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_i32, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_label(part: &str) -> Option<Label> {
    let key = |text: &str| {
        let text = text.trim();
        let fine = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        (!text.is_empty() && text.chars().all(fine)).then(|| text.to_owned())
    };
    let value = |text: &str| {
        let text = text.trim();
        let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        (text.len() <= 63 && text.chars().all(fine)).then(|| text.to_owned())
    };
    if let Some(absent) = part.strip_prefix('!') {
        return key(absent).map(Label::Absent);
    }
    if let Some((k, v)) = part.split_once("!=") {
        return Some(Label::NotIn(key(k)?, vec![value(v)?]));
    }
    if let Some((k, v)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Some(Label::In(key(k)?, vec![value(v)?]));
    }
    if let Some((k, v)) = part.split_once('>') {
        return Some(Label::Greater(key(k)?, v.trim().parse().ok()?));
    }
    if let Some((k, v)) = part.split_once('<') {
        return Some(Label::Less(key(k)?, v.trim().parse().ok()?));
    }
    if let Some((head, values)) = part.split_once('(') {
        let values = values.trim_end().strip_suffix(')')?.split(',').map(value).collect::<Option<Vec<_>>>()?;
        let mut words = head.split_whitespace();
        let (k, operator) = (key(words.next()?)?, words.next()?);
        return match operator {
            _ if words.next().is_some() => None,
            "in" => Some(Label::In(k, values)),
            "notin" => Some(Label::NotIn(k, values)),
            _ => None,
        };
    }
    key(part).map(Label::Exists)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Draft;
    use serde_json::json;

    #[test]
    fn requirements_on_labels() {
        let object = Draft::new(&json!({"metadata": {"labels": {"env": "prod", "n": "5"}}}), &[]).stamp(1);
        for (selector, wanted) in [
            ("env=prod", true),
            ("env==dev", false),
            ("env!=dev,n", true),
            ("other!=x", true),
            ("env in (prod, dev)", true),
            ("env notin (prod)", false),
            ("!env", false),
            ("!other", true),
            ("n>4,n<6", true),
            ("", true),
        ] {
            assert_eq!(Selector::parse(Some(selector), None, &[]).unwrap().matches(&object), wanted, "{selector}");
        }
        for bad in ["a b c", "a in (b", "=x", "a=b=c", ",", "a in b"] {
            assert_eq!(Selector::parse(Some(bad), None, &[]).unwrap_err().code, 400, "{bad}");
        }
    }

    #[test]
    fn only_known_fields_select() {
        let known = [crate::kinds::field("metadata.name", ""), crate::kinds::field("spec.nodeName", "")];
        let object = Draft::new(&json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}}), &known).stamp(1);
        let matches = |text| Selector::parse(None, Some(text), &known).map(|s| s.matches(&object));
        assert_eq!(matches("metadata.name=p,spec.nodeName!="), Ok(true));
        assert_eq!(matches("spec.nodeName==m"), Ok(false));
        assert!(matches("data.k=v").is_err());
    }
}
