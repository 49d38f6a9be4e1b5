//! What happens on a device: one session of the helper tells of each container that ends.
//!
//! It begins with those that have ended already, so that nothing falls between a listing and the first event. It ends
//! when the connection does, and now and then by itself: then everything is listed again, which finds what could not
//! be told, as when the system has killed a supervisor.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use tokio::sync::broadcast;

use super::device::Device;
use super::lines::{Begin, Lines};
use super::{found, script};
use crate::provider::Result;
use crate::provider::runtime::EngineEvent;

/// After which time everything is looked at anew.
const RESYNC: Duration = Duration::from_secs(120);
/// How long to wait when the device does not tell.
const RETRY: Duration = Duration::from_secs(2);

/// What happens from now on; `told` are ends that were seen by whoever looked.
pub(super) fn events(device: Arc<Device>, told: broadcast::Receiver<EngineEvent>) -> BoxStream<'static, EngineEvent> {
    let own = stream::unfold(told, |mut told| async move {
        match told.recv().await {
            Ok(event) => Some((event, told)),
            Err(broadcast::error::RecvError::Lagged(_)) => Some((EngineEvent::Lost, told)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    });
    let theirs = stream::once(connect(device)).flatten().chain(stream::iter([EngineEvent::Lost]));
    stream::select(own, theirs).boxed()
}

async fn connect(device: Arc<Device>) -> BoxStream<'static, EngineEvent> {
    let lines = match watch(&device).await {
        Ok(lines) => lines,
        Err(error) => {
            tracing::debug!(%error, "the device tells of no ends; asked again");
            tokio::time::sleep(RETRY).await;
            return stream::empty().boxed();
        }
    };
    let lines = stream::unfold(lines, |mut lines| async move { Some((lines.next().await?, lines)) });
    lines
        .filter_map(|line| std::future::ready(event(&String::from_utf8_lossy(&line))))
        .take_until(tokio::time::sleep(RESYNC))
        .boxed()
}

async fn watch(device: &Arc<Device>) -> Result<Lines> {
    // Scripts share this connection: what is told here is read at once, whatever comes.
    let link = device.control().await?;
    // Whoever lists at the same time sees to it that the helper is there.
    script::look(&device.settings)?;
    let settings = &device.settings;
    let command = format!("exec {} {} watch {} {}", settings.shell, device.helper_file, settings.node, settings.epoch);
    let mut lines = Lines::open(&link, command).await?;
    match lines.begin().await? {
        Begin::Here | Begin::Gone => Ok(lines),
    }
}

fn event(line: &str) -> Option<EngineEvent> {
    let found = found::container(line)?;
    Some(EngineEvent::Container { container: found.container, state: found.state })
}
