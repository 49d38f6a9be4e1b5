//! Watches: the present as ADDED events when asked for, then changes, bookmarks, and an end on time.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::http::{Answer, Form, agree, answer, streamed};
use super::read::{self, include, selector};
use super::{Api, Call};
use crate::selector::Selector;
use crate::status::{ApiError, Result};
use crate::store::{Event, Object, Subscription, TooOld};
use crate::tables::{self, IncludeObject};

const BOOKMARK_EVERY: Duration = Duration::from_secs(55);
/// The last bookmark comes this long before the end, unless the watch is not longer than that.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);
/// Watches without a limit of their own end after 30 to 60 minutes, as the API server's do.
const SHORTEST: u64 = 1800;
/// Events are sent together while they are at hand, up to this size.
const PIECE: usize = 64 << 10;

/// Everything a watch needs after it has begun.
struct Watch {
    api: Arc<Api>,
    call: Call,
    form: Form,
    include: IncludeObject,
    selector: Selector,
    live: Subscription,
    /// The last revision that the client knows of.
    seen: u64,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    /// Column definitions go out with the first table only.
    headed: bool,
    first: Option<Bytes>,
    done: bool,
}

pub(crate) fn watch(api: &Arc<Api>, call: Call) -> Result<Answer> {
    call.options.check_list()?;
    let (form, include, selector) = (agree(&call.headers)?.form, include(&call)?, selector(&call)?);
    let given = call.options.revision()?;
    let initial = call.options.flag("sendInitialEvents");
    let bookmarks = call.options.flag("allowWatchBookmarks");
    let seconds = call.options.number("timeoutSeconds")?.filter(|s| *s > 0);
    let limit = Duration::from_secs(seconds.unwrap_or_else(|| rand::random_range(SHORTEST..2 * SHORTEST)));
    // A watch that begins with what is there says where that ends to whoever takes bookmarks.
    let interest = selector.interest(call.namespace());
    let replay = initial || (given.unwrap_or(0) == 0 && call.options.get("sendInitialEvents").is_none());
    let mut out = Vec::new();
    let begun = Instant::now();
    let watch = |live, seen| Watch {
        api: api.clone(),
        form,
        include,
        selector: selector.clone(),
        live,
        seen,
        bookmarks,
        next_bookmark: begun
            + limit.checked_sub(LAST_BOOKMARK).filter(|d| !d.is_zero()).unwrap_or(limit).min(BOOKMARK_EVERY),
        deadline: begun + limit.min(Duration::from_secs(24 * 3600)),
        headed: false,
        first: None,
        done: false,
        call: Call {
            kind: call.kind.clone(),
            resource: call.resource.clone(),
            target: call.target.clone(),
            options: call.options.clone(),
            user: call.user.clone(),
            headers: call.headers.clone(),
        },
    };
    if let Some(asked) = given.filter(|asked| initial && *asked > api.store.revision()) {
        // What there is cannot be shown as it will be.
        return Ok(ended(&read::too_large(asked, api.store.revision())));
    }
    let mut watch = if replay {
        let wanted = |object: &Object| selector.matches(object);
        let (objects, revision, live) = call.resource.list_and_watch(&api.store, call.namespace(), interest, wanted);
        let mut watch = watch(live, revision);
        for object in &objects {
            watch.write(&mut out, "ADDED", object);
        }
        if bookmarks {
            watch.bookmark(&mut out, true);
        }
        watch
    } else {
        let from = given.filter(|revision| *revision > 0).unwrap_or_else(|| api.store.revision());
        match call.resource.watch(from, interest) {
            Ok((past, live)) => {
                let mut watch = watch(live, from);
                for event in &past {
                    watch.event(&mut out, event);
                }
                watch
            }
            Err(TooOld(floor)) => {
                let error = ApiError::expired(format!("too old resource version: {from} ({floor})"));
                return Ok(ended(&error));
            }
        }
    };
    watch.first = Some(out.into());
    let content_type = match form {
        Form::Table => "application/json;as=Table;v=v1;g=meta.k8s.io",
        _ => "application/json",
    };
    let pieces = futures::stream::unfold(watch, |mut watch| async move {
        let piece = watch.next().await?;
        Some((Ok(piece), watch))
    });
    Ok(answer(200, content_type, streamed(Box::pin(pieces) as Pin<Box<_>>)))
}

/// A watch that ends with an error before it began.
fn ended(error: &ApiError) -> Answer {
    let line = format!("{}\n", json!({"type": "ERROR", "object": error.body()}));
    answer(200, "application/json", super::http::full(line))
}

impl Watch {
    /// The next bytes to send; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take().filter(|first| !first.is_empty()) {
            return Some(first);
        }
        if self.done {
            return None;
        }
        let mut out = Vec::new();
        while out.is_empty() && !self.done {
            let bookmark = if self.bookmarks { self.next_bookmark } else { self.deadline };
            tokio::select! {
                biased;
                () = self.api.stopping.cancelled() => self.done = true,
                event = self.live.events.recv() => match event {
                    Some(event) => {
                        self.event(&mut out, &event);
                        self.drain(&mut out);
                    }
                    None => self.done = true,
                },
                () = tokio::time::sleep_until(self.deadline) => self.done = true,
                () = tokio::time::sleep_until(bookmark), if self.bookmarks => {
                    self.catch_up(&mut out);
                    let last = self.deadline - LAST_BOOKMARK;
                    let next = self.next_bookmark + BOOKMARK_EVERY;
                    self.next_bookmark = if self.next_bookmark < last { next.min(last) } else { next };
                }
            }
        }
        (!out.is_empty()).then(|| out.into())
    }

    fn drain(&mut self, out: &mut Vec<u8>) {
        while out.len() < PIECE
            && let Ok(event) = self.live.events.try_recv()
        {
            self.event(out, &event);
        }
    }

    /// Sends what is waiting and then says how far the client is.
    fn catch_up(&mut self, out: &mut Vec<u8>) {
        let settled = self.call.resource.settled(&self.api.store);
        while let Ok(event) = self.live.events.try_recv() {
            self.event(out, &event);
        }
        self.seen = self.seen.max(settled);
        self.bookmark(out, false);
    }

    fn event(&mut self, out: &mut Vec<u8>, event: &Event) {
        if event.revision <= self.seen {
            return;
        }
        let here = self.call.namespace().is_none_or(|ns| *event.object.key.namespace == *ns);
        let matches = |object: &Object| here && self.selector.matches(object);
        let before = event.before.as_ref().is_some_and(|before| matches(before));
        let after = !event.deleted && matches(&event.object);
        match (before, after) {
            (false, true) => self.write(out, "ADDED", &event.object),
            (true, true) => self.write(out, "MODIFIED", &event.object),
            (true, false) if event.deleted => self.write(out, "DELETED", &event.object),
            // It left the selection: its last state there, at the revision of the change.
            (true, false) => {
                if let Some(before) = &event.before {
                    self.write(out, "DELETED", &before.stamped(event.revision));
                }
            }
            (false, false) => {}
        }
        self.seen = event.revision;
    }

    fn write(&mut self, out: &mut Vec<u8>, kind: &str, object: &Object) {
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\",\"object\":");
        match self.form {
            Form::Object => out.extend_from_slice(&Api::served(&self.call.kind, object)),
            Form::Partial => out.extend_from_slice(read::partial_of(object).as_bytes()),
            Form::Table => {
                let value = Api::served_value(&self.call.kind, object);
                let meta = json!({"resourceVersion": object.revision.to_string()});
                out.extend_from_slice(self.table(&meta, &[&value]).to_string().as_bytes());
            }
        }
        out.extend_from_slice(b"}\n");
    }

    fn table(&mut self, meta: &Value, items: &[&Value]) -> Value {
        let kind = &self.call.kind;
        let mut table = tables::table((&kind.group, &kind.kind), kind.columns.as_deref(), meta, items, self.include);
        if std::mem::replace(&mut self.headed, true) {
            table["columnDefinitions"] = Value::Null;
        }
        table
    }

    fn bookmark(&mut self, out: &mut Vec<u8>, initial: bool) {
        let kind = &self.call.kind;
        let mut meta = json!({"resourceVersion": self.seen.to_string()});
        if initial {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.form {
            Form::Table => {
                let item = json!({"metadata": meta});
                let meta = json!({"resourceVersion": self.seen.to_string()});
                self.table(&meta, &[&item])
            }
            Form::Partial => json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": meta}),
            Form::Object => json!({"kind": &*kind.kind, "apiVersion": kind.api_version(), "metadata": meta}),
        };
        let line = json!({"type": "BOOKMARK", "object": object});
        out.extend_from_slice(line.to_string().as_bytes());
        out.push(b'\n');
    }
}
