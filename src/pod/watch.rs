//! One watch of the bound pods for the whole fleet.
//!
//! Pods of other nodes are dropped as they arrive. When the watch has to begin anew, be it after a lost
//! connection or a 410, what is not listed any more has been deleted meanwhile.

use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Config, Event};
use tokio_util::sync::CancellationToken;

use super::cache::Applied;
use super::{Key, PodController};

impl PodController {
    pub(super) async fn watch(self: Arc<Self>, shutdown: CancellationToken) {
        let mut streaming = true;
        loop {
            let config = Config::default().fields("spec.nodeName!=");
            // Servers before 1.32 refuse to stream lists unless told to by a feature gate.
            let config = if streaming { config.streaming_lists() } else { config.page_size(500) };
            let stream = watcher::watcher(Api::<Pod>::all(self.client.clone()), config)
                .backoff(crate::cluster::watch::WatchBackoff::default());
            let mut stream = std::pin::pin!(stream);
            let mut expected = HashSet::new();
            loop {
                let Some(next) = shutdown.run_until_cancelled(stream.next()).await else { return };
                match next {
                    Some(Ok(event)) => self.watched(event, &mut expected),
                    Some(Err(error)) if streaming && !self.synced() && is_refusal(&error) => {
                        tracing::info!("the API server does not stream lists; pods are listed in pages");
                        streaming = false;
                        break;
                    }
                    Some(Err(error)) => tracing::warn!(%error, "the watch of pods was interrupted; it is resumed"),
                    // The stream does not end by itself; if it did, beginning anew is right.
                    None => break,
                }
            }
        }
    }

    fn watched(&self, event: Event<Pod>, expected: &mut HashSet<Arc<str>>) {
        self.release(self.api.answered());
        match event {
            Event::Init => *expected = self.cache.all_uids(),
            Event::InitApply(pod) => {
                if let Some(uid) = pod.metadata.uid.as_deref() {
                    expected.remove(uid);
                }
                self.arrived(pod);
            }
            Event::Apply(pod) => self.arrived(pod),
            Event::Delete(pod) => {
                let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
                self.left(pod.metadata.uid.as_deref().unwrap_or_default(), node);
            }
            Event::InitDone => {
                for uid in expected.drain() {
                    self.left(&uid, None);
                }
                if !self.synced.send_replace(true) {
                    for node in self.cache.nodes() {
                        self.queue.add(Key::Node(node.name.clone()));
                    }
                }
            }
        }
    }

    fn arrived(&self, mut pod: Pod) {
        pod.metadata.managed_fields = None;
        self.note(self.cache.apply(pod));
    }

    fn left(&self, uid: &str, node: Option<&str>) {
        self.note(self.cache.gone(uid, node));
    }

    pub(super) fn note(&self, applied: Applied) {
        if let Applied::Changed { uid, node, counts } = applied {
            self.queue.add(Key::Pod(uid));
            if counts {
                (self.config.on_counts)(&node);
            }
        }
    }
}

fn is_refusal(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(e) | watcher::Error::WatchStartFailed(e)) = error else { return false };
    matches!(e, kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422))
}
