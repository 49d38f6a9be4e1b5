//! The API server answers badly all through a life: it refuses, loses answers, cuts watches, forgets history, goes away.

use std::time::Duration;

use serde_json::{Value, json};

use super::life::Life;
use super::stage::{OPERATOR, Stage, WRITES};

/// What is wrong with the API server.
pub struct Storm {
    pub name: &'static str,
    /// Faults that are there from the beginning to the end.
    rules: Vec<Value>,
    /// Faults that come again and again.
    gusts: Vec<(&'static str, Value)>,
    /// How much time is between two gusts.
    lull: Duration,
    /// The scheduler cannot see either: it may put a pod back on the node that is being emptied, which sends it on.
    blind: bool,
}

/// All of them.
pub fn all() -> Vec<Storm> {
    let of = |mut matches: Value, share: f64, action: Value| {
        matches["user"] = json!(OPERATOR);
        json!({"match": matches, "share": share, "action": action})
    };
    let calm = Duration::MAX;
    vec![
        Storm {
            name: "a fifth of what it asks is refused",
            rules: vec![
                of(json!({}), 0.1, json!({"type": "status", "code": 429, "retryAfterSeconds": 1})),
                of(json!({}), 0.1, json!({"type": "status", "code": 500})),
            ],
            gusts: vec![],
            lull: calm,
            blind: false,
        },
        Storm {
            name: "a fifth of its writes take effect and are not answered",
            rules: vec![{
                let mut rule = of(json!({"methods": WRITES}), 0.2, json!({"type": "reset"}));
                rule["after"] = json!(true);
                rule
            }],
            gusts: vec![],
            lull: calm,
            blind: false,
        },
        Storm {
            name: "watches are cut, and what they missed is forgotten",
            rules: vec![],
            gusts: vec![("/compact", json!({})), ("/cut-watches", json!({}))],
            lull: Duration::from_secs(2),
            blind: true,
        },
        Storm {
            name: "it may not do anything for seconds at a time",
            rules: vec![],
            gusts: vec![(
                "",
                json!({"match": {"user": OPERATOR}, "seconds": 2, "action": {"type": "status", "code": 403}}),
            )],
            lull: Duration::from_secs(8),
            blind: false,
        },
        Storm {
            name: "it is cut off for seconds at a time",
            rules: vec![],
            gusts: vec![
                ("", json!({"match": {"user": OPERATOR}, "seconds": 2, "action": {"type": "reset"}})),
                ("/cut-watches", json!({})),
            ],
            lull: Duration::from_secs(8),
            blind: false,
        },
    ]
}

impl Stage {
    /// Lives a life in a storm. What is left of it is looked at in good weather.
    pub async fn live_in(&self, name: &str, storm: &Storm, watch: &'static str) -> Result<(), String> {
        self.watch.set(watch);
        for rule in &storm.rules {
            self.faults("POST", "", rule).await;
        }
        self.start();
        let life = Life::new(self, name);
        let mut lived = tokio::select! {
            lived = life.live() => lived,
            () = self.blow(storm) => Ok(()),
        };
        self.faults("DELETE", "", &Value::Null).await;
        if lived.is_ok() {
            lived = life.check(storm.blind).await;
        }
        if lived.is_err() {
            life.clear().await;
        }
        self.end();
        lived
    }

    /// Never ends.
    async fn blow(&self, storm: &Storm) {
        loop {
            if storm.gusts.is_empty() {
                return std::future::pending().await;
            }
            for (path, body) in &storm.gusts {
                self.faults("POST", path, body).await;
            }
            tokio::time::sleep(storm.lull).await;
        }
    }
}
