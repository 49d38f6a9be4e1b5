//! `/debug/faults`: rules are added, listed and removed, and single faults asked for.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::request::Parts;
use serde::Deserialize;
use serde_json::{Value, json};

use super::rules::Rule;
use super::{Active, Faults, Network};
use crate::auth::User;
use crate::server::Api;
use crate::server::http::{Answer, Asking, json as answer_json, read_body};
use crate::status::{ApiError, Result};

const PATH: &str = "/debug/faults";

/// A resource, or all of them.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Which {
    group: String,
    resource: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Outage {
    mode: Network,
    seconds: f64,
}

/// What follows the endpoint's own path; `None` for every other path.
pub(crate) fn below(path: &str) -> Option<&str> {
    path.strip_prefix(PATH).filter(|rest| rest.is_empty() || rest.starts_with('/')).map(|rest| rest.trim_matches('/'))
}

/// Answers a request for `below` the endpoint's path.
pub(crate) async fn answer(
    api: &Api,
    faults: &Arc<Faults>,
    user: &User,
    parts: &Parts,
    below: &str,
    body: Asking,
) -> Result<Answer> {
    if !user.in_group("system:masters") {
        let message = format!("forbidden: User {:?} cannot use {PATH}: only system:masters may", user.name);
        return Err(ApiError::new(403, "Forbidden", message));
    }
    let body = read_body(body).await?;
    match (&parts.method, below) {
        (&Method::GET, "") => Ok(answer_json(200, &faults.list())),
        (&Method::POST, "") => {
            let rule: Rule = read(&body)?;
            if let Some(fault) = rule.fault() {
                return Err(ApiError::bad_request(fault));
            }
            Ok(answer_json(201, &json!({"id": faults.add(rule)})))
        }
        (&Method::DELETE, "") => {
            faults.rules().active.clear();
            Ok(answer_json(200, &faults.list()))
        }
        (&Method::DELETE, id) => {
            let mut rules = faults.rules();
            let before = rules.active.len();
            rules.active.retain(|active| active.id.to_string() != id);
            match rules.active.len() == before {
                true => Err(ApiError::new(404, "NotFound", format!("there is no rule {id:?}"))),
                false => Ok(answer_json(200, &json!({}))),
            }
        }
        (&Method::POST, "cut-watches") => {
            resources(api, &read(&body)?)?.iter().for_each(|resource| resource.cut_watches());
            Ok(answer_json(200, &json!({})))
        }
        (&Method::POST, "compact") => {
            resources(api, &read(&body)?)?.iter().for_each(|resource| resource.compact(&api.store));
            Ok(answer_json(200, &json!({"revision": api.store.revision()})))
        }
        (&Method::POST, "outage") => {
            let outage: Outage = read(&body)?;
            if !(0.0..=3600.0).contains(&outage.seconds) {
                return Err(ApiError::bad_request("seconds must be from 0 to 3600"));
            }
            faults.outage(outage.mode, Duration::from_secs_f64(outage.seconds));
            Ok(answer_json(202, &json!({})))
        }
        _ => Err(ApiError::new(404, "NotFound", format!("{PATH} cannot do that"))),
    }
}

fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| ApiError::bad_request(error.to_string()))
}

fn resources(api: &Api, which: &Which) -> Result<Vec<Arc<crate::store::Resource>>> {
    let Some(plural) = &which.resource else { return Ok(api.store.all()) };
    match api.registry.kinds().iter().find(|kind| kind.group.as_ref() == which.group && *kind.plural == **plural) {
        Some(kind) => Ok(vec![api.store.resource(&kind.storage)]),
        None => {
            Err(ApiError::new(404, "NotFound", format!("there is no resource {plural:?} in group {:?}", which.group)))
        }
    }
}

impl Faults {
    fn list(&self) -> Value {
        let rule = |active: &Active| {
            let mut rule = serde_json::to_value(&active.rule).unwrap_or_default();
            rule["id"] = active.id.into();
            rule["matched"] = active.matched.into();
            rule["applied"] = active.applied.into();
            rule["held"] = (Arc::strong_count(&active.held) - 1).into();
            rule["struck"] = json!(active.struck);
            rule
        };
        let rules: Vec<_> = self.rules().active.iter().map(rule).collect();
        json!({"seed": self.seed, "network": *self.network.borrow(), "rules": rules})
    }
}
