//! What is shared when talking to Kubernetes.
//!
//! | module | holds |
//! |---|---|
//! | [`events`] | the one writer of events: aggregated, bounded, lowest priority |
//! | [`queue`] | the keyed work queue that every reconciler of this process uses |

pub mod events;
pub mod queue;
