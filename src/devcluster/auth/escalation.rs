//! Nobody grants more than they have: which of the wanted rules a user's own rules do not cover.
//!
//! component-helpers: `auth/rbac/validation`.

use super::rbac::Rule;

/// The wanted rules that `own` does not cover, as Kubernetes prints them, sorted.
pub(crate) fn missing(own: &[Rule], wanted: &[Rule]) -> Vec<String> {
    let mut compact: Vec<Rule> = Vec::new();
    for simple in wanted.iter().flat_map(split).filter(|rule| !own.iter().any(|held| covers(held, rule))) {
        let same = |known: &&mut Rule| {
            (&known.groups, &known.resources, &known.names, &known.paths)
                == (&simple.groups, &simple.resources, &simple.names, &simple.paths)
        };
        match compact.iter_mut().find(same) {
            Some(known) if !known.verbs.contains(&simple.verbs[0]) => known.verbs.extend(simple.verbs),
            Some(_) => {}
            None => compact.push(simple),
        }
    }
    let mut lines: Vec<String> = compact.iter().map(printed).collect();
    lines.sort();
    lines
}

/// Rules of one verb on one resource or path each.
fn split(rule: &Rule) -> Vec<Rule> {
    let mut simple = Vec::new();
    for group in &rule.groups {
        for resource in &rule.resources {
            let names: Vec<Vec<String>> = match rule.names.is_empty() {
                true => vec![Vec::new()],
                false => rule.names.iter().map(|name| vec![name.clone()]).collect(),
            };
            for names in names {
                simple.extend(rule.verbs.iter().map(|verb| Rule {
                    verbs: vec![verb.clone()],
                    groups: vec![group.clone()],
                    resources: vec![resource.clone()],
                    names: names.clone(),
                    paths: Vec::new(),
                }));
            }
        }
    }
    for path in &rule.paths {
        simple.extend(rule.verbs.iter().map(|verb| Rule {
            verbs: vec![verb.clone()],
            paths: vec![path.clone()],
            ..Rule::default()
        }));
    }
    simple
}

/// Whether a rule grants all that a split rule does.
fn covers(held: &Rule, wanted: &Rule) -> bool {
    let all =
        |held: &[String], wanted: &[String]| held.iter().any(|h| h == "*") || wanted.iter().all(|w| held.contains(w));
    if !all(&held.verbs, &wanted.verbs) {
        return false;
    }
    if !wanted.paths.is_empty() {
        let path = |wanted: &String| {
            held.paths
                .iter()
                .any(|h| h == wanted || h.strip_suffix('*').is_some_and(|prefix| wanted.starts_with(prefix)))
        };
        return wanted.paths.iter().all(path);
    }
    let resource = |wanted: &String| {
        let part = wanted.split_once('/').map(|(_, part)| format!("*/{part}"));
        held.resources.iter().any(|h| h == "*" || h == wanted || Some(h) == part.as_ref())
    };
    let names =
        held.names.is_empty() || !wanted.names.is_empty() && wanted.names.iter().all(|n| held.names.contains(n));
    all(&held.groups, &wanted.groups) && wanted.resources.iter().all(resource) && names
}

fn printed(rule: &Rule) -> String {
    let list = |key: &str, values: &[String]| {
        let quoted: Vec<_> = values.iter().map(|v| format!("{v:?}")).collect();
        (!values.is_empty()).then(|| format!("{key}:[{}]", quoted.join(" ")))
    };
    let parts = [
        list("APIGroups", &rule.groups),
        list("Resources", &rule.resources),
        list("ResourceNames", &rule.names),
        list("NonResourceURLs", &rule.paths),
        list("Verbs", &rule.verbs),
    ];
    format!("{{{}}}", parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rules(rules: serde_json::Value) -> Vec<Rule> {
        rules.as_array().unwrap().iter().map(Rule::from_json).collect()
    }

    #[test]
    fn what_is_not_held_is_named_rule_by_rule() {
        let own = rules(json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]));
        let wanted = rules(json!([{"apiGroups": [""], "resources": ["pods", "secrets"], "verbs": ["get", "list"]},
            {"apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["a", "b"], "verbs": ["*"]},
            {"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]));
        assert_eq!(
            missing(&own, &wanted),
            [
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["list"]}"#,
                r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get" "list"]}"#,
                r#"{APIGroups:["apps"], Resources:["deployments"], ResourceNames:["a"], Verbs:["*"]}"#,
                r#"{APIGroups:["apps"], Resources:["deployments"], ResourceNames:["b"], Verbs:["*"]}"#,
                r#"{NonResourceURLs:["/metrics"], Verbs:["get"]}"#,
            ]
        );
    }

    #[test]
    fn stars_and_names_cover_as_they_grant() {
        let pods = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]});
        let named = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"], "resourceNames": ["a"]});
        let part = json!({"apiGroups": ["x"], "resources": ["y/status"], "verbs": ["get"]});
        let path = json!({"nonResourceURLs": ["/a/b"], "verbs": ["get"]});
        for (own, wanted, covered) in [
            (json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}), &part, true),
            (json!({"apiGroups": ["*"], "resources": ["*/status"], "verbs": ["*"]}), &part, true),
            (json!({"apiGroups": ["*"], "resources": ["y"], "verbs": ["*"]}), &part, false),
            (pods.clone(), &named, true),
            (named.clone(), &pods, false),
            (named.clone(), &named, true),
            (json!({"nonResourceURLs": ["/a/*"], "verbs": ["get"]}), &path, true),
            (json!({"nonResourceURLs": ["*"], "verbs": ["*"]}), &path, true),
            (json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}), &path, false),
        ] {
            let said = format!("{own} covers {wanted}");
            assert_eq!(missing(&rules(json!([own])), &rules(json!([wanted]))).is_empty(), covered, "{said}");
        }
    }
}
