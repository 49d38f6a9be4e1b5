//! Interface V2: that of `docs/provider-http.yaml`.
//!
//! | module | what it is |
//! |---|---|
//! | `wire` | the JSON: pure |
//! | `feed` | the change feed: server-sent events |
//! | `logs` | log lines |
//! | `streams` | exec, attach and port-forward over WebSockets |
//! | `used` | the JSON of statistics |

pub(super) mod feed;
mod logs;
mod streams;
mod used;
pub(super) mod wire;

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde::de::DeserializeOwned;

use super::http::{Answer, Ask, Http, LARGE, SMALL, encode};
use crate::provider::{
    Duplex, ExitStatus, LogOptions, LogStream, NodeDescription, NodeUsage, PodObservation, PodRef, ProviderError,
    ResolvedPod, Result, SessionIo,
};
use used::Used;
use wire::{About, Given, Machine, Problem, State, States, Stop};

/// Grows with each owner of the node, so that a service can refuse what comes late from an older one.
const EPOCH: &str = "vnode-epoch";
/// The same request twice has the same effect as once.
const IDEMPOTENCY: &str = "idempotency-key";

/// A service that has this interface.
pub(super) struct V2 {
    http: Arc<Http>,
    node: Arc<str>,
    node_uid: Arc<str>,
    epoch: i64,
}

/// What a service says of a pod, and the number that grows with every change of it.
pub(super) type Seen = (PodObservation, Option<i64>);

/// What `GET /v2/capabilities` came to.
pub(super) enum Probe {
    /// The service has this interface.
    Ours(About),
    /// It has another one: what it said.
    Other(Answer),
}

/// Asks whether a service has this interface.
pub(super) async fn probe(http: &Http, within: Duration) -> Result<Probe> {
    let answer = http.ask_within(Ask::get("/v2/capabilities"), SMALL, within).await?;
    let about = serde_json::from_slice::<About>(&answer.body).ok().filter(About::is_ours);
    Ok(match about {
        Some(about) if answer.status.is_success() => Probe::Ours(about),
        _ => Probe::Other(answer),
    })
}

impl V2 {
    pub fn new(http: Arc<Http>, node: Arc<str>, node_uid: Arc<str>, epoch: i64) -> Self {
        Self { http, node, node_uid, epoch }
    }

    /// The path of something of this node.
    fn path(&self, rest: &str) -> String {
        format!("/v2/nodes/{}{rest}", encode(&self.node_uid))
    }

    fn pod_path(&self, pod: &PodRef, rest: &str) -> String {
        self.path(&format!("/pods/{}{rest}", encode(&pod.uid)))
    }

    /// The request with what goes with each one.
    fn marked(&self, ask: Ask) -> Ask {
        ask.header(EPOCH, &self.epoch.to_string()).header("vnode-node", &self.node)
    }

    async fn ask(&self, ask: Ask, limit: usize, missing: &str) -> Result<Answer> {
        let answer = self.http.ask(self.marked(ask), limit).await?;
        let problem = answer.kind == "application/problem+json";
        if answer.status.is_success() && !problem { Ok(answer) } else { Err(refusal(&answer, missing)) }
    }

    async fn get<T: DeserializeOwned>(&self, path: String, limit: usize, missing: &str) -> Result<T> {
        self.ask(Ask::get(path), limit, missing).await?.json()
    }

    pub async fn create(&self, pod: &ResolvedPod) -> Result<()> {
        let reference = pod.pod_ref();
        let ask = Ask::with(Method::POST, self.path("/pods"), &Given::of(pod, None))?;
        let ask = ask.header(IDEMPOTENCY, &format!("\"create-{}\"", reference.uid));
        match self.ask(ask, SMALL, "the node").await {
            // A service that does not know the node yet is not one that refuses the pod.
            Err(ProviderError::NotFound(what)) => Err(ProviderError::unavailable(format!("{what} is not known there"))),
            other => other.map(drop),
        }
    }

    pub async fn update(&self, pod: &ResolvedPod, volumes: Option<&[String]>) -> Result<()> {
        let reference = pod.pod_ref();
        let ask = Ask::with(Method::PUT, self.pod_path(&reference, ""), &Given::of(pod, volumes))?;
        self.ask(ask, SMALL, &format!("pod {reference}")).await.map(drop)
    }

    pub async fn stop(&self, pod: &PodRef, grace: Duration) -> Result<()> {
        let seconds = grace.as_secs();
        let ask = Ask::with(Method::POST, self.pod_path(pod, "/stop"), &Stop { grace_period_seconds: seconds })?;
        let ask = ask.header(IDEMPOTENCY, &format!("\"stop-{}-{seconds}\"", pod.uid));
        self.ask(ask, SMALL, &format!("pod {pod}")).await.map(drop)
    }

    pub async fn remove(&self, pod: &PodRef) -> Result<()> {
        let ask = Ask { method: Method::DELETE, ..Ask::get(self.pod_path(pod, "")) };
        match self.ask(ask, SMALL, &format!("pod {pod}")).await {
            Err(ProviderError::NotFound(_)) => Ok(()),
            other => other.map(drop),
        }
    }

    pub async fn pod(&self, pod: &PodRef) -> Result<Seen> {
        let missing = format!("pod {pod}");
        let answer = self.ask(Ask::get(self.pod_path(pod, "")), SMALL, &missing).await?;
        let state: State = answer.json()?;
        let of_another =
            || ProviderError::unavailable(format!("{}: the answer is about another pod or another node", answer.what));
        let sequence = state.sequence;
        let found = state.observation(&self.node_uid).filter(|o| o.pod.uid == pod.uid).ok_or_else(of_another)?;
        Ok((found, sequence))
    }

    /// Every pod, and from where on the change feed tells the rest.
    pub async fn pods(&self) -> Result<(Vec<Seen>, Option<String>)> {
        let answer = self.ask(Ask::get(self.path("/pods")), LARGE, "the node").await;
        let states: States = match answer {
            // Not known is not "without pods": only an answer that says so is believed.
            Err(ProviderError::NotFound(what)) => {
                return Err(ProviderError::unavailable(format!("{what} is not known at the service")));
            }
            answer => answer?.json()?,
        };
        let ours = |state: State| {
            let name = format!("{}/{}", state.namespace, state.name);
            let sequence = state.sequence;
            let found = state.observation(&self.node_uid);
            if found.is_none() {
                tracing::warn!(node = %self.node, pod = name, "the service lists a pod of another node; it is left alone");
            }
            Some((found?, sequence))
        };
        Ok((states.pods.into_iter().filter_map(ours).collect(), states.cursor))
    }

    pub async fn describe(&self) -> Result<NodeDescription> {
        match self.get::<Machine>(self.path(""), SMALL, "the node").await {
            Ok(machine) => Ok(machine.into()),
            Err(ProviderError::NotFound(_)) => Ok(NodeDescription::default()),
            Err(error) => Err(error),
        }
    }

    pub async fn stats(&self) -> Result<NodeUsage> {
        Ok(self.get::<Used>(self.path("/stats"), LARGE, "the node's statistics").await?.into())
    }

    pub async fn logs(&self, pod: &PodRef, container: &str, options: &LogOptions) -> Result<LogStream> {
        let missing = format!("log of container {container:?} in pod {pod}");
        let mut query = format!("?follow={}&previous={}", options.follow, options.previous);
        if let Some(tail) = options.tail {
            query += &format!("&tailLines={tail}");
        }
        if let Some(since) = options.since {
            query += &format!("&sinceTime={}", encode(&since.to_string()));
        }
        let ask = Ask::get(self.pod_path(pod, &format!("/containers/{}/logs{query}", encode(container))));
        let ask = self.marked(ask).header("accept", "text/plain, application/problem+json");
        match self.http.open(ask).await? {
            Ok(body) => Ok(logs::lines(body.read, options)),
            Err(answer) => Err(refusal(&answer, &missing)),
        }
    }

    pub async fn exec(&self, pod: &PodRef, container: &str, command: &[String], io: SessionIo) -> Result<ExitStatus> {
        let words: Vec<String> = command.iter().map(|word| format!("command={}", encode(word))).collect();
        let path = format!("/containers/{}/exec?{}", encode(container), words.join("&"));
        self.session(pod, container, &path, io).await
    }

    pub async fn attach(&self, pod: &PodRef, container: &str, io: SessionIo) -> Result<ExitStatus> {
        self.session(pod, container, &format!("/containers/{}/attach?", encode(container)), io).await
    }

    async fn session(&self, pod: &PodRef, container: &str, path: &str, io: SessionIo) -> Result<ExitStatus> {
        let flags = [
            ("stdin", io.stdin.is_some()),
            ("stdout", io.stdout.is_some()),
            ("stderr", io.stderr.is_some()),
            ("tty", io.tty),
        ];
        let flags: Vec<String> = flags.iter().map(|(name, on)| format!("{name}={on}")).collect();
        let ask = self.marked(Ask::get(self.pod_path(pod, &format!("{path}&{}", flags.join("&")).replace("?&", "?"))));
        let missing = format!("container {container:?} in pod {pod}");
        let socket = streams::open(&self.http, &ask, streams::CHANNELS, &missing).await?;
        streams::session(socket, &ask.what(), io).await
    }

    pub async fn port_forward(&self, pod: &PodRef, port: u16) -> Result<Box<dyn Duplex>> {
        let ask = self.marked(Ask::get(self.pod_path(pod, &format!("/portforward?port={port}"))));
        let socket = streams::open(&self.http, &ask, streams::BYTES, &format!("pod {pod}")).await?;
        Ok(streams::bytes(socket))
    }
}

/// What an answer that is no success lets us conclude. Only a problem of the interface's own does; a page of
/// something in between does not.
fn refusal(answer: &Answer, missing: &str) -> ProviderError {
    let problem = (answer.kind == "application/problem+json")
        .then(|| serde_json::from_slice::<Problem>(&answer.body).ok())
        .flatten()
        .and_then(|p| p.error(&answer.what, missing));
    problem.unwrap_or_else(|| answer.unavailable())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    fn refused(status: u16, kind: &str, body: &str) -> ProviderError {
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            kind: kind.into(),
            retry_after: Some(Duration::from_secs(7)),
            body: body.to_owned().into(),
            what: "GET /v2/x".into(),
        };
        refusal(&answer, "pod a/b")
    }

    #[test]
    fn only_a_problem_of_the_interface_is_an_answer() {
        let problem = |word: &str| {
            format!(
                r#"{{"type": "https://vnode.dev/problems/{word}", "detail": "why", "field": "spec.x", "reason": "Full"}}"#
            )
        };
        let ours = "application/problem+json";
        for (status, kind, body, want) in [
            (404, ours, problem("not-found"), "pod a/b not found"),
            (422, ours, problem("invalid"), "spec.x: why"),
            (409, ours, problem("rejected"), "rejected by the provider (Full): why"),
            (501, ours, problem("unsupported"), "this request is not supported"),
            (409, ours, problem("stale-epoch"), "another replica"),
            (404, ours, r#"{"type": "about:blank"}"#.into(), "unavailable: GET /v2/x: 404"),
            (404, "text/html", "<html>".into(), "unavailable: GET /v2/x: 404 Not Found: an HTML page"),
            (404, "application/json", problem("not-found"), "unavailable"),
            (401, "", String::new(), "token, tls.crt"),
            (302, "", String::new(), "redirects"),
        ] {
            let said = refused(status, kind, &body).to_string();
            assert!(said.contains(want), "{status} {body}: {said}");
        }
        let busy = refused(503, "", "");
        assert!(matches!(busy, ProviderError::Unavailable { retry_after: Some(t), .. } if t.as_secs() == 7));
        let ended = refused(500, "", "");
        assert!(matches!(ended, ProviderError::Unavailable { retry_after: None, .. }));
    }
}
