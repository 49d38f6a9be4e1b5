//! stub
use super::*;
impl PodController {
    pub(super) async fn watch(self: Arc<Self>, shutdown: CancellationToken) { shutdown.cancelled().await }
}
