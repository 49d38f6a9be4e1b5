//! What happens at an engine.
//!
//! The stream begins with a look at what has ended, once the engine has begun to tell of what happens, so that
//! nothing falls between the two. It ends when the connection does, and now and then by itself: then everything
//! is listed again, which finds what an engine forgot to tell.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use http::{HeaderMap, Method};
use jiff::Timestamp;
use serde::Deserialize;

use super::engine::{Inner, PARALLEL};
use super::found::{Found, Summary};
use super::names::{self, Labels};
use crate::provider::runtime::{ContainerState, EngineEvent, Exit};

const BEGIN: Duration = Duration::from_secs(20);
/// After which time everything is looked at anew.
const RESYNC: Duration = Duration::from_secs(120);
/// How long to wait when the engine does not tell of events.
const RETRY: Duration = Duration::from_secs(2);

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Event {
    action: String,
    actor: Actor,
    #[serde(rename = "timeNano")]
    time_nano: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    attributes: Option<Labels>,
}

impl Event {
    /// `died` is Podman's word.
    fn is_end(&self) -> bool {
        matches!(self.action.as_str(), "die" | "died")
    }

    /// What the event itself says of an end, for a container that is gone already.
    fn exit(&self) -> Option<EngineEvent> {
        let attributes = self.actor.attributes.as_ref()?;
        let container = names::container_of(attributes, &self.actor.id)?;
        let code = attributes.get("exitCode").or_else(|| attributes.get("containerExitCode"))?;
        let finished_at = Timestamp::from_nanosecond(self.time_nano.into()).ok().filter(|t| t.as_second() > 0);
        let exit = Exit {
            code: code.parse().ok()?,
            signal: None,
            started_at: None,
            finished_at: finished_at.unwrap_or_else(Timestamp::now),
            oom_killed: false,
            reason: None,
            message: None,
        };
        Some(EngineEvent::Container { container, state: ContainerState::Exited(exit) })
    }
}

/// What happens from now on.
pub(super) fn events(inner: Arc<Inner>) -> BoxStream<'static, EngineEvent> {
    let own = stream::unfold(inner.told.subscribe(), |mut told| async move {
        match told.recv().await {
            Ok(event) => Some((event, told)),
            Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => Some((EngineEvent::Lost, told)),
            Err(tokio::sync::broadcast::error::RecvError::Closed) => None,
        }
    });
    let theirs = stream::once(connect(inner)).flatten().chain(stream::iter([EngineEvent::Lost]));
    stream::select(own, theirs).boxed()
}

async fn connect(inner: Arc<Inner>) -> BoxStream<'static, EngineEvent> {
    // What answers may be another engine, or a newer one.
    inner.client.forget().await;
    let filter = names::filter(&[(names::NODE, &inner.settings.node)], &[("type", "container")]);
    let lines = inner.client.lines(Method::GET, &format!("/events?{filter}"), HeaderMap::new(), BEGIN).await;
    let lines = match lines {
        Ok(lines) => lines,
        Err(error) => {
            tracing::debug!(?error, "the engine tells of no events; asked again");
            tokio::time::sleep(RETRY).await;
            return stream::empty().boxed();
        }
    };
    let ended = ended(&inner).await;
    let told = lines
        .take_while(|line| std::future::ready(line.is_ok()))
        .filter_map(|line| async move { serde_json::from_str::<Event>(&line.ok()?).ok() })
        .filter(|event| std::future::ready(event.is_end()))
        .map(move |event| look(inner.clone(), event))
        .buffer_unordered(PARALLEL)
        .filter_map(std::future::ready)
        .take_until(tokio::time::sleep(RESYNC));
    stream::iter(ended).chain(told).boxed()
}

/// What had ended before the first event. Who asks has a list of his own, so that a failure is no loss here.
async fn ended(inner: &Inner) -> Vec<EngineEvent> {
    let filter = names::filter(&[(names::NODE, &inner.settings.node)], &[("status", "exited")]);
    let found = inner.client.get::<Vec<Summary>>(&format!("/containers/json?all=true&{filter}")).await;
    let ended = found.unwrap_or_default().into_iter().filter(|s| !s.labels.contains_key(names::SANDBOX));
    let looks = ended.map(|summary| async move { state_of(&inner.inspect(&summary.id).await.ok()?) });
    stream::iter(looks).buffer_unordered(PARALLEL).filter_map(std::future::ready).collect().await
}

/// The state that a container is in, as an event.
pub(super) fn state_of(found: &Found) -> Option<EngineEvent> {
    let container = names::container_of(&found.config.labels, &found.id)?;
    Some(EngineEvent::Container { container, state: found.state.of_container() })
}

async fn look(inner: Arc<Inner>, event: Event) -> Option<EngineEvent> {
    if event.actor.attributes.as_ref().is_some_and(|a| a.contains_key(names::SANDBOX)) {
        return None;
    }
    // Podman tells it before its own records say so.
    for wait in [0, 100, 300, 1000, 3000] {
        tokio::time::sleep(Duration::from_millis(wait)).await;
        match inner.inspect(&event.actor.id).await {
            Ok(found) => match state_of(&found)? {
                EngineEvent::Container { state: ContainerState::Running { .. } | ContainerState::Created, .. } => {}
                ended => return Some(ended),
            },
            Err(error) if error.is_not_found() => return event.exit(),
            Err(_) => return Some(EngineEvent::Lost),
        }
    }
    Some(EngineEvent::Lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read_from_either_engines_events() {
        let labels = r#""io.kubernetes.pod.namespace":"d","io.kubernetes.pod.name":"p","io.kubernetes.pod.uid":"u",
            "io.kubernetes.container.name":"main","vnode.dev/attempt":"1""#;
        for (action, key) in [("die", "exitCode"), ("died", "containerExitCode")] {
            let text = format!(
                r#"{{"status":"x","Type":"container","Action":"{action}","scope":"local","timeNano":1763712000000000000,
                "Actor":{{"ID":"abc","Attributes":{{"{key}":"3",{labels}}}}}}}"#
            );
            let event: Event = serde_json::from_str(&text).unwrap();
            assert!(event.is_end());
            let Some(EngineEvent::Container { container, state: ContainerState::Exited(exit) }) = event.exit() else {
                panic!("an end")
            };
            assert_eq!((&*container.name, container.attempt, exit.code), ("main", 1, 3));
        }
        let start: Event = serde_json::from_str(r#"{"Action":"start","Actor":{"ID":"a","Attributes":null}}"#).unwrap();
        assert!(!start.is_end() && start.exit().is_none());
    }
}
