//! Label and field selectors: what they select. [`labels`] and [`fields`] are their grammars.

mod fields;
mod labels;

use crate::status::Result;
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
        let mut selector = Self { labels: labels::parse(labels.unwrap_or_default())?, ..Self::default() };
        for (name, value, equal) in fields::parse(fields.unwrap_or_default())? {
            let Some(at) = known.iter().position(|f| *f.name == *name) else {
                return Err(fields::unknown(&name, known));
            };
            let value: Box<str> = value.into();
            match &*name {
                "metadata.name" if equal => selector.name = Some(value.clone()),
                "metadata.namespace" if equal => selector.namespace = Some(value.clone()),
                _ => {}
            }
            selector.fields.push((at, value, equal));
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
pub(crate) fn required_name(fields: &str) -> Option<String> {
    required(fields, "metadata.name")
        .filter(|value| !value.is_empty() && !matches!(value.as_str(), "." | "..") && !value.contains(['/', '%']))
}

/// The value that a field selector demands of a field. Read by the grammar that also selects: rights that were given
/// by another reading would not be the rights to what is then answered.
pub(crate) fn required(fields: &str, name: &str) -> Option<String> {
    let demands = fields::parse(fields).ok()?;
    demands.into_iter().find_map(|(field, value, equal)| (equal && field == name).then_some(value))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Draft;
    use serde_json::json;

    #[test]
    fn a_name_is_required_only_where_it_also_selects() {
        for (fields, want) in [
            ("metadata.name=a", Some("a")),
            ("metadata.namespace=n,metadata.name==a", Some("a")),
            ("metadata.name!=a", None),
            ("metadata.namespace!=x\\,metadata.name=a", None),
            ("metadata.name=..", None),
            ("metadata.name", None),
        ] {
            assert_eq!(required_name(fields).as_deref(), want, "{fields}");
        }
    }

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
