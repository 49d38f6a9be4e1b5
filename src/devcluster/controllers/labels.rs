//! Label selectors against labels.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Labels of an object.
pub(crate) type Labels = BTreeMap<String, String>;

/// One requirement of a label selector or a node selector.
pub(crate) fn requirement(labels: &Labels, key: &str, operator: &str, values: &[String]) -> bool {
    let have = labels.get(key);
    let number = |text: Option<&String>| text.and_then(|t| t.parse::<i64>().ok());
    match operator {
        "In" => have.is_some_and(|v| values.contains(v)),
        "NotIn" => have.is_none_or(|v| !values.contains(v)),
        "Exists" => have.is_some(),
        "DoesNotExist" => have.is_none(),
        "Gt" => number(have).zip(number(values.first())).is_some_and(|(a, b)| a > b),
        "Lt" => number(have).zip(number(values.first())).is_some_and(|(a, b)| a < b),
        _ => false,
    }
}

/// Whether a selector takes these labels; an empty one takes everything.
pub(crate) fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.match_labels.iter().flatten().all(|(k, v)| labels.get(k) == Some(v))
        && selector
            .match_expressions
            .iter()
            .flatten()
            .all(|e| requirement(labels, &e.key, &e.operator, e.values.as_deref().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_hold_as_kubernetes_defines_them() {
        let labels = Labels::from([("zone".to_string(), "a".to_string()), ("n".to_string(), "5".to_string())]);
        for (key, operator, values, want) in [
            ("zone", "In", vec!["a", "b"], true),
            ("zone", "NotIn", vec!["a"], false),
            ("none", "NotIn", vec!["a"], true),
            ("zone", "Exists", vec![], true),
            ("none", "DoesNotExist", vec![], true),
            ("n", "Gt", vec!["4"], true),
            ("n", "Lt", vec!["4"], false),
            ("zone", "Gt", vec!["4"], false),
        ] {
            let values: Vec<String> = values.into_iter().map(String::from).collect();
            assert_eq!(requirement(&labels, key, operator, &values), want, "{key} {operator}");
        }
    }
}
