//! Where lives are lived: a cluster, the operator that is killed and started again, and what is watched of it all.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use kube::api::{DynamicObject, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};

use super::life::Life;
use super::points::Point;
use super::seen::{self, Seen};
use crate::support::{Bed, objects};

/// How long each step of a life may take, with the operator killed in the middle of it.
const PATIENCE: Duration = Duration::from_secs(45);
const LOOK: Duration = Duration::from_millis(25);
const FAULTS: &str = "/debug/faults";
/// Whom the operator is to the API server; the script is somebody else.
pub const OPERATOR: &str = "kubernetes-admin";
pub const WRITES: [&str; 4] = ["POST", "PUT", "PATCH", "DELETE"];

/// See the module.
pub struct Stage {
    bed: RefCell<Bed>,
    /// The folder of the pods that are processes.
    pub state: PathBuf,
    client: Client,
    pub pods: Seen,
    pub nodes: Seen,
    /// How many operators there were.
    started: Cell<u32>,
    writes: RefCell<Vec<String>>,
    /// How they watch pods.
    pub watch: Cell<&'static str>,
}

/// Waits until `check` is content; its last complaint otherwise.
pub async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Result<T, String>) -> Result<T, String> {
    let end = Instant::now() + PATIENCE;
    loop {
        match check().await {
            Ok(found) => return Ok(found),
            Err(complaint) if Instant::now() > end => {
                return Err(format!("after {PATIENCE:?} still not: {what}: {complaint}"));
            }
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

impl Stage {
    pub async fn set() -> Self {
        let bed = Bed::cluster_only();
        let kubeconfig = Kubeconfig::read_from(bed.kubeconfig()).expect("the kubeconfig");
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        let mut config = config.expect("a configuration");
        config.auth_info.impersonate = Some("script".into());
        config.auth_info.impersonate_groups = Some(vec!["system:masters".into()]);
        let client = Client::try_from(config).expect("a client");
        let stage = Self {
            state: bed.dir.path().join("pods"),
            pods: seen::watch(&client, "Pod"),
            nodes: seen::watch(&client, "Node"),
            bed: RefCell::new(bed),
            client,
            started: Cell::new(0),
            writes: RefCell::default(),
            watch: Cell::default(),
        };
        let served = until("custom resources are served", async || {
            for kind in ["VirtualNode", "VirtualNodeSet"] {
                stage.api(kind, "").list(&ListParams::default()).await.map_err(|error| error.to_string())?;
            }
            Ok(())
        });
        served.await.expect("a cluster");
        stage
    }

    /// The API of a kind.
    pub fn api(&self, kind: &str, namespace: &str) -> Api<DynamicObject> {
        objects::api(&self.client, kind, namespace)
    }

    pub async fn faults(&self, method: &str, below: &str, body: &Value) -> Value {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = http::Request::builder().method(method).uri(format!("{FAULTS}{below}")).body(body);
        self.client.request(request.expect("a request")).await.expect("the cluster answers")
    }

    /// The rule of an id, with what it did.
    async fn rule(&self, id: &Value) -> Value {
        let all = self.faults("GET", "", &Value::Null).await;
        let rule = all["rules"].as_array().into_iter().flatten().find(|rule| rule["id"] == *id);
        rule.cloned().expect("the rule is there")
    }

    /// From now on the operator's writes are remembered.
    async fn record(&self) {
        let matches = json!({"user": OPERATOR, "methods": WRITES});
        self.faults("POST", "", &json!({"match": matches, "action": {"type": "delay", "milliseconds": 0}})).await;
    }

    /// The writes of the latest life, but for one that was held up.
    pub fn writes(&self) -> Vec<String> {
        self.writes.borrow().clone()
    }

    async fn forget(&self) {
        let rules = self.faults("GET", "", &Value::Null).await;
        self.faults("DELETE", "", &Value::Null).await;
        let rules = rules["rules"].as_array().into_iter().flatten();
        let struck = rules.filter(|r| r["action"]["type"] == "delay").filter_map(|r| r["struck"].as_array()).flatten();
        *self.writes.borrow_mut() = struck.filter_map(|write| write.as_str().map(str::to_owned)).collect();
    }

    /// Lives a life, in which the operator is killed at a point. Whether it came to that.
    pub async fn live(&self, name: &str, point: Option<&Point>, watch: &'static str) -> Result<bool, String> {
        self.watch.set(watch);
        let rule = match point {
            Some(point) => {
                let matches = json!({"user": OPERATOR, "methods": [point.method], "path": point.pattern(name)});
                let rule = json!({"match": matches, "skip": point.nth, "count": 1, "after": point.after,
                    "action": {"type": "hang"}});
                Some(self.faults("POST", "", &rule).await["id"].clone())
            }
            None => None,
        };
        self.record().await;
        self.start();
        let life = Life::new(self, name);
        let begun = Cell::new(false);
        let mut crash = pin!(async {
            match &rule {
                Some(id) => self.crash_at(id, &begun).await,
                None => std::future::pending().await,
            }
        });
        let mut struck = false;
        let mut lived = {
            let mut lived = pin!(life.live());
            loop {
                tokio::select! {
                    lived = &mut lived => break lived,
                    crashed = &mut crash, if !struck => match crashed {
                        Ok(()) => struck = true,
                        Err(why) => break Err(why),
                    },
                }
            }
        };
        // One of the last writes, and life did not wait for its answer.
        if let (Some(id), false, Ok(())) = (&rule, struck, &lived) {
            struck = begun.get() || self.rule(id).await["applied"] != 0;
            if struck {
                lived = crash.await;
            }
        }
        if lived.is_ok() {
            lived = life.check(false).await;
        }
        self.forget().await;
        if lived.is_err() {
            life.clear().await;
        }
        self.end();
        lived.map(|()| struck)
    }

    /// Kills the operator if there is one.
    pub fn end(&self) {
        if self.bed.borrow().operator.is_some() {
            self.bed.borrow_mut().kill_operator();
        }
    }

    /// Waits until a write is held up, kills the operator that waits for its answer, and starts another.
    async fn crash_at(&self, rule: &Value, begun: &Cell<bool>) -> Result<(), String> {
        while self.rule(rule).await["applied"] == 0 {
            tokio::time::sleep(LOOK).await;
        }
        begun.set(true);
        self.bed.borrow_mut().kill_operator();
        until("the cluster notices that the operator is gone", async || {
            if self.rule(rule).await["held"] == 0 { Ok(()) } else { Err("a write is held".into()) }
        })
        .await?;
        self.faults("DELETE", &format!("/{rule}"), &Value::Null).await;
        self.start();
        Ok(())
    }

    pub fn start(&self) {
        let state = self.state.display().to_string();
        self.bed.borrow_mut().start_operator_with(&["--allow-host-processes", "--state-dir", &state, self.watch.get()]);
        self.started.set(self.started.get() + 1);
    }

    /// The operator ends in good order, if it is not killed meanwhile, and another one is started.
    pub async fn restart(&self) -> Result<(), String> {
        let before = self.started.get();
        if let Some(operator) = &self.bed.borrow().operator {
            operator.signal("TERM");
        }
        until("the operator ends when it is told to", async || {
            let running = self.bed.borrow_mut().operator.as_mut().is_none_or(|operator| operator.is_running());
            if running && self.started.get() == before { Err("it runs".into()) } else { Ok(()) }
        })
        .await?;
        if self.started.get() == before {
            self.start();
        }
        Ok(())
    }

    /// What the operators said last.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(self.bed.borrow().dir.path().join("operator.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// A file of a life.
    pub fn file(&self, name: &str) -> PathBuf {
        self.bed.borrow().dir.path().join(name)
    }
}
