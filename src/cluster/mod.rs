//! What is shared when talking to Kubernetes.
//!
//! | module | holds |
//! |---|---|
//! | [`client`] | the client: deadlines, obedience to 429, what is counted |
//! | [`events`] | the one writer of events: aggregated, bounded, lowest priority |
//! | [`identity`] | in whose name requests for a node are made |
//! | [`merge`] | the smallest merge patch between two values |
//! | [`queue`] | the keyed work queue that every reconciler of this process uses |
//! | [`watch`] | how long a broken watch waits |

pub mod client;
pub mod events;
pub mod fence;
pub mod identity;
pub mod merge;
pub mod queue;
pub mod watch;
