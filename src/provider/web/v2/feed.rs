//! The change feed: server-sent events, taken up where they broke off.

use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::{Instant, timeout};
use tokio_util::codec::{FramedRead, LinesCodec};

use super::wire::{Gone, Notice, state};
use super::{V2, refusal};
use crate::provider::web::follow::Sink;
use crate::provider::web::http::Ask;
use crate::provider::{ProviderError, Result};

/// A longer line is none of a pod's.
const MAX_LINE: usize = 8 << 20;
/// The feed says something at least every 15 s; a silence of three times that is a dead one.
const SILENCE: Duration = Duration::from_secs(45);

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Event {
    id: Option<String>,
    kind: String,
    data: String,
}

/// Puts lines together to events. WHATWG HTML, section 9.2.6.
#[derive(Default)]
struct Parser(Event);

impl Parser {
    /// The event that ends with this line, if one does. `None` inside when an event grows too long.
    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.0);
            return (!event.data.is_empty()).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.0.kind = value.to_owned(),
            "id" if !value.contains('\0') => self.0.id = Some(value.to_owned()),
            "data" => {
                if !self.0.data.is_empty() {
                    self.0.data.push('\n');
                }
                self.0.data.push_str(value);
            }
            _ => {}
        }
        None
    }

    fn size(&self) -> usize {
        self.0.data.len()
    }
}

/// Why the feed ended.
pub(in super::super) enum End {
    /// It broke; `cursor` says where to take it up.
    Broken(ProviderError),
    /// What is wanted is no more to be had: all pods must be listed anew.
    Reset,
}

impl V2 {
    /// Follows the change feed from `cursor` on, which is kept up to date, and tells `sink` of what comes.
    pub async fn follow(&self, cursor: &mut Option<String>, sink: &dyn Sink) -> End {
        match self.follow_on(cursor, sink).await {
            Ok(end) => end,
            Err(error) => End::Broken(error),
        }
    }

    async fn follow_on(&self, cursor: &mut Option<String>, sink: &dyn Sink) -> Result<End> {
        let mut ask = self.marked(Ask::get(self.path("/events"))).header("accept", "text/event-stream");
        if let Some(cursor) = cursor {
            ask = ask.header("last-event-id", cursor);
        }
        let what = ask.what();
        let body = match self.http.open(ask).await? {
            Ok(body) => body,
            // The cursor is too old, or of a service that has been set up anew.
            Err(answer) if matches!(answer.status.as_u16(), 404 | 410) => return Ok(End::Reset),
            Err(answer) => return Err(refusal(&answer, "the change feed")),
        };
        let failed = |why: &str| ProviderError::unavailable(format!("{what}: {why}"));
        if body.kind != "text/event-stream" {
            return Err(failed(&format!("the answer is {:?} in place of text/event-stream", body.kind)));
        }
        let mut lines = FramedRead::new(body.read, LinesCodec::new_with_max_length(MAX_LINE));
        let mut parser = Parser::default();
        loop {
            let line = match timeout(SILENCE, lines.next()).await {
                Ok(Some(Ok(line))) => line,
                Ok(Some(Err(error))) => return Err(failed(&error.to_string())),
                Ok(None) => return Err(failed("the service ended the change feed")),
                Err(_) => return Err(failed(&format!("the change feed is silent for {} s", SILENCE.as_secs()))),
            };
            if let Some(event) = parser.line(&line) {
                if self.tell(&event, sink)? {
                    return Ok(End::Reset);
                }
                if let Some(id) = event.id {
                    *cursor = Some(id).filter(|id| !id.is_empty());
                }
            } else if parser.size() > MAX_LINE {
                return Err(failed("an event is too long"));
            }
        }
    }

    /// Tells of an event; true when all must be listed anew.
    fn tell(&self, event: &Event, sink: &dyn Sink) -> Result<bool> {
        let what = "an event of the change feed";
        let wrong = |e: serde_json::Error| ProviderError::unavailable(format!("{what} makes no sense: {e}"));
        match event.kind.as_str() {
            "pod" => {
                let state = state(&event.data, what)?;
                let sequence = state.sequence;
                if let Some(observation) = state.observation(&self.node_uid) {
                    sink.pod(observation, Instant::now(), sequence);
                }
            }
            "gone" => sink.gone(&serde_json::from_str::<Gone>(&event.data).map_err(wrong)?.uid),
            "notice" => sink.notice(serde_json::from_str::<Notice>(&event.data).map_err(wrong)?),
            "reset" => return Ok(true),
            // Of a newer version.
            _ => {}
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_put_together_from_lines() {
        let mut parser = Parser::default();
        let text = ": hello\n\nid: 7\nevent: pod\ndata: {\"a\":\ndata: 1}\nretry: 5\n\nid:8\ndata:x\n\nevent: nothing\n\nid: 9";
        let events: Vec<Event> = text.split('\n').filter_map(|line| parser.line(line)).collect();
        let event =
            |id: &str, kind: &str, data: &str| Event { id: Some(id.into()), kind: kind.into(), data: data.into() };
        assert_eq!(events, [event("7", "pod", "{\"a\":\n1}"), event("8", "", "x")]);
    }
}
