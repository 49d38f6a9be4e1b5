//! Whether a pod is as it should be: pure, with a complaint for people when it is not.

use serde_json::Value;

use super::table::Expect;

/// The state of a container in words, as in `ended Error 3 unready`.
pub fn state(container: &Value, field: &str) -> String {
    let state = &container[field];
    let reason = |s: &Value| s["reason"].as_str().unwrap_or("-").to_owned();
    let word = if let Some(waiting) = state.get("waiting") {
        format!("waiting {}", reason(waiting))
    } else if state.get("running").is_some() {
        "running".to_owned()
    } else if let Some(ended) = state.get("terminated") {
        format!("ended {} {}", reason(ended), ended["exitCode"])
    } else {
        "none".to_owned()
    };
    let ready = if container["ready"] == true { "ready" } else { "unready" };
    if field == "state" { format!("{word} {ready}") } else { word }
}

/// All containers of a pod's status.
pub fn containers(status: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"];
    lists.into_iter().flat_map(|list| status[list].as_array().into_iter().flatten())
}

/// True when the words of `wanted` are the first ones of `found`.
fn begins(found: &str, wanted: &str) -> bool {
    let mut found = found.split_whitespace();
    wanted.split_whitespace().all(|w| found.next() == Some(w))
}

/// A complaint when `found` is not as `wanted` wants, field by field.
pub fn part(found: &Value, wanted: &Value, path: &str) -> Result<(), String> {
    match (found, wanted) {
        (Value::String(found), Value::String(wanted)) if wanted.starts_with('~') => {
            match found.contains(&wanted[1..]) {
                true => Ok(()),
                false => Err(format!("{path} is {found:?}, without {:?}", &wanted[1..])),
            }
        }
        (_, Value::Object(map)) => {
            map.iter().try_for_each(|(name, wanted)| part(&found[name.as_str()], wanted, &format!("{path}.{name}")))
        }
        (Value::Array(found), Value::Array(wanted)) => {
            let missing = wanted.iter().find(|w| !found.iter().any(|f| part(f, w, path).is_ok()));
            missing.map_or(Ok(()), |m| Err(format!("{path} lacks {m}")))
        }
        (found, wanted) if found == wanted => Ok(()),
        (found, wanted) => Err(format!("{path} is {found}, not {wanted}")),
    }
}

impl Expect {
    /// A complaint when an object is not so.
    pub fn check(&self, object: &Value) -> Result<(), String> {
        let status = &object["status"];
        let text = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
        for (field, wanted) in [("phase", &self.phase), ("reason", &self.reason)] {
            if wanted.as_ref().is_some_and(|w| *w != text(field)) {
                return Err(format!("its {field} is {:?}, not {:?}", text(field), wanted.as_deref().unwrap_or("")));
            }
        }
        if self.message.as_ref().is_some_and(|m| !text("message").contains(m)) {
            return Err(format!("its message is {:?}", text("message")));
        }
        let find = |name: &str| {
            containers(status).find(|c| c["name"] == name).ok_or_else(|| format!("it has no status of {name}"))
        };
        for (field, wanted) in [("state", &self.states), ("lastState", &self.last)] {
            for (name, wanted) in wanted {
                let found = state(find(name)?, field);
                if !begins(&found, wanted) {
                    return Err(format!("{field} of {name} is {found:?}, not {wanted:?}"));
                }
            }
        }
        for (name, wanted) in &self.restarts {
            let found = find(name)?["restartCount"].as_i64().unwrap_or(-1);
            let fits = match wanted {
                Value::String(least) => {
                    least.strip_prefix(">=").and_then(|n| n.trim().parse::<i64>().ok()).is_some_and(|n| found >= n)
                }
                exact => exact.as_i64() == Some(found),
            };
            if !fits {
                return Err(format!("{name} was restarted {found} times, not {wanted}"));
            }
        }
        for (name, wanted) in &self.says {
            let container = &find(name)?["state"];
            let message = container["waiting"]["message"].as_str().or(container["terminated"]["message"].as_str());
            if !message.unwrap_or_default().contains(wanted.as_str()) {
                return Err(format!("{name} says {message:?}, without {wanted:?}"));
            }
        }
        for (kind, wanted) in &self.conditions {
            let all = status["conditions"].as_array().into_iter().flatten();
            let found = all.into_iter().find(|c| c["type"] == kind.as_str());
            let found = found.map_or("absent".to_owned(), |c| {
                format!("{} {}", c["status"].as_str().unwrap_or(""), c["reason"].as_str().unwrap_or(""))
            });
            if !begins(&found, wanted) {
                return Err(format!("its condition {kind} is {found:?}, not {wanted:?}"));
            }
        }
        self.status.as_ref().map_or(Ok(()), |wanted| part(status, wanted, "status"))
    }
}

/// A pod in a line, for those who look why a scenario failed.
pub fn line(pod: &Value) -> String {
    let status = &pod["status"];
    let of = |c: &Value| {
        let message = c["state"]["waiting"]["message"].as_str().or(c["state"]["terminated"]["message"].as_str());
        let message = message.map(|m| format!(" {m:?}")).unwrap_or_default();
        format!("{}: {} x{}{message}", c["name"].as_str().unwrap_or(""), state(c, "state"), c["restartCount"])
    };
    let containers: Vec<String> = containers(status).map(of).collect();
    let text = |v: &Value| v.as_str().unwrap_or("-").to_owned();
    format!(
        "{} {} {} [{}]{}",
        text(&status["phase"]),
        text(&status["reason"]),
        text(&status["message"]),
        containers.join(", "),
        if pod["metadata"]["deletionTimestamp"].is_string() { " deleting" } else { "" }
    )
}

#[test]
fn words_and_parts_are_compared_as_written() {
    let pod = serde_json::json!({"status": {"phase": "Running", "containerStatuses": [
        {"name": "m", "ready": true, "restartCount": 2, "state": {"running": {}}, "lastState": {"terminated": {"reason": "Error", "exitCode": 3}}}
    ], "conditions": [{"type": "Ready", "status": "False", "reason": "X"}]}});
    let expect = |text: &str| serde_saphyr::from_str::<Expect>(text).expect("readable").check(&pod);
    for good in [
        "{phase: Running, states: {m: running}, restarts: {m: 2}}",
        "{states: {m: running ready}, last: {m: ended Error 3}, restarts: {m: '>=1'}}",
        "{conditions: {Ready: 'False', Absent: absent}, status: {containerStatuses: [{name: m}]}}",
    ] {
        assert_eq!(expect(good), Ok(()), "{good}");
    }
    for bad in [
        "{phase: Failed}",
        "{states: {m: running unready}}",
        "{restarts: {m: '>=3'}}",
        "{conditions: {Ready: False Y}}",
        "{states: {n: running}}",
    ] {
        assert!(expect(bad).is_err(), "{bad}");
    }
}
