//! Rules: which requests a fault hits, and what it does to them.

use serde::{Deserialize, Serialize};

/// The user that the cluster's own controllers are: spared unless a rule names it.
pub(crate) const CONTROLLERS: &str = "system:kube-controller-manager";

/// A fault, as it is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Rule {
    /// Which requests it may hit; all when empty.
    #[serde(default, rename = "match")]
    pub(crate) matches: Match,
    /// How many of those it hits, from 0 to 1.
    #[serde(default = "all")]
    pub(crate) share: f64,
    /// How many that it would hit pass before it strikes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) skip: u64,
    /// How often it strikes before it is spent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) count: Option<u64>,
    /// How long it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) seconds: Option<f64>,
    /// The request takes effect first, and it is its answer that is hit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) after: bool,
    pub(crate) action: Action,
}

fn all() -> f64 {
    1.0
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Which requests a rule is about. What is not given does not matter.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct Match {
    /// HTTP methods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) methods: Vec<String>,
    /// The beginning of the path, or all of it as a pattern with `*` for any text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    /// Watches alone, or everything else alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) watch: Option<bool>,
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type", deny_unknown_fields)]
pub(crate) enum Action {
    /// An error is answered.
    Status(Fault),
    /// Nothing is answered as long as the rule is there.
    Hang,
    /// It waits, and is then answered as ever.
    Delay { milliseconds: u64 },
    /// Its connection is reset.
    Reset,
}

/// The error that is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Fault {
    pub(crate) code: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    /// Also sent as `Retry-After`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retry_after_seconds: Option<u64>,
}

/// What rules look at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) user: &'a str,
    pub(crate) watch: bool,
}

impl Rule {
    /// What is wrong with it.
    pub(crate) fn fault(&self) -> Option<String> {
        if !(0.0..=1.0).contains(&self.share) {
            return Some(format!("share must be from 0 to 1, not {}", self.share));
        }
        if self.seconds.is_some_and(|seconds| !(0.0..=86_400.0).contains(&seconds)) {
            return Some("seconds must be from 0 to 86400".into());
        }
        match &self.action {
            Action::Status(fault) if !(400..=599).contains(&fault.code) => {
                Some(format!("action.code must be from 400 to 599, not {}", fault.code))
            }
            _ => None,
        }
    }
}

impl Match {
    pub(crate) fn covers(&self, asked: &Asked<'_>) -> bool {
        let user = match &self.user {
            Some(user) => user == asked.user,
            None => asked.user != CONTROLLERS,
        };
        user && (self.methods.is_empty() || self.methods.iter().any(|method| method.eq_ignore_ascii_case(asked.method)))
            && self.watch.is_none_or(|watch| watch == asked.watch)
            && self.path.as_ref().is_none_or(|pattern| path_matches(pattern, asked.path))
    }
}

fn path_matches(pattern: &str, path: &str) -> bool {
    let Some((head, mut rest)) = pattern.split_once('*') else { return path.starts_with(pattern) };
    let Some(mut path) = path.strip_prefix(head) else { return false };
    // Between stars, the earliest place will do; the last part must be the end.
    while let Some((part, more)) = rest.split_once('*') {
        let Some(at) = path.find(part) else { return false };
        (path, rest) = (&path[at + part.len()..], more);
    }
    path.ends_with(rest)
}

/// Whether the `nth` request that a rule is about is one of its share. The same for the same seed.
pub(crate) fn falls(seed: u64, rule: u64, nth: u64, share: f64) -> bool {
    let mut x = seed ^ rule.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ nth.wrapping_mul(0xd1b5_4a32_d192_ed03);
    for _ in 0..2 {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
    }
    // The top 53 bits as a fraction.
    ((x >> 11) as f64) < share * (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn rule(value: Value) -> Result<Rule, serde_json::Error> {
        serde_json::from_value(value)
    }

    #[test]
    fn rules_match_what_they_name() {
        let asked = Asked { method: "GET", path: "/api/v1/namespaces/a/pods/b", user: "jane", watch: false };
        for (matches, wanted) in [
            (json!({}), true),
            (json!({"methods": ["get", "PUT"]}), true),
            (json!({"methods": ["PUT"]}), false),
            (json!({"path": "/api/v1/"}), true),
            (json!({"path": "/apis/"}), false),
            (json!({"path": "/api/*/pods*"}), true),
            (json!({"path": "/api/*/pods"}), false),
            (json!({"path": "*/namespaces/*/b"}), true),
            (json!({"user": "jane"}), true),
            (json!({"user": "joe"}), false),
            (json!({"watch": true}), false),
        ] {
            let matches: Match = serde_json::from_value(matches.clone()).unwrap();
            assert_eq!(matches.covers(&asked), wanted, "{matches:?}");
        }
    }

    #[test]
    fn the_clusters_own_controllers_are_spared_unless_named() {
        let asked = Asked { method: "GET", path: "/", user: CONTROLLERS, watch: false };
        assert!(!Match::default().covers(&asked));
        assert!(Match { user: Some(CONTROLLERS.into()), ..Match::default() }.covers(&asked));
    }

    #[test]
    fn the_share_is_kept_and_repeats_with_the_seed() {
        let draw = |seed, share| (0..10_000).filter(|n| falls(seed, 1, *n, share)).count();
        assert_eq!((draw(1, 0.0), draw(1, 1.0)), (0, 10_000));
        assert!((2_800..3_200).contains(&draw(1, 0.3)), "{}", draw(1, 0.3));
        assert_eq!(draw(7, 0.3), draw(7, 0.3));
        let order = |seed| (0..64).map(|n| falls(seed, 1, n, 0.5)).collect::<Vec<_>>();
        assert_ne!(order(1), order(2));
    }

    #[test]
    fn nonsense_is_refused_and_told() {
        assert!(rule(json!({"action": {"type": "explode"}})).is_err());
        assert!(rule(json!({"action": {"type": "hang"}, "chance": 1})).is_err());
        for (value, says) in [
            (json!({"action": {"type": "hang"}, "share": 2}), "share"),
            (json!({"action": {"type": "hang"}, "seconds": -1}), "seconds"),
            (json!({"action": {"type": "status", "code": 200}}), "action.code"),
        ] {
            assert!(rule(value).unwrap().fault().unwrap().contains(says));
        }
    }
}
