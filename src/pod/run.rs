//! stub
use super::*;
impl PodController {
    pub(super) async fn work(self: Arc<Self>, shutdown: CancellationToken) { shutdown.cancelled().await }
    pub(super) async fn clear_node(&self, _node: &cache::NodeState, _deadline: Duration) -> usize { 0 }
}
