//! The one writer of events.
use tokio_util::sync::CancellationToken;
/// Writes events.
#[derive(Clone)]
pub struct EventWriter { client: kube::Client }
impl EventWriter {
    /// New.
    pub fn new(client: kube::Client) -> Self { Self { client } }
    /// Runs.
    pub async fn run(&self, shutdown: CancellationToken) { let _ = &self.client; shutdown.cancelled().await }
}
