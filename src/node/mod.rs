//! One node of the cluster: what its Node object says, and what of it is ours.
//!
//! | module | what it is |
//! |---|---|
//! | [`render`] | pure: from a VirtualNode and its provider's description to the Node that should be |
//! | [`live`] | the Nodes of the fleet as the API server has them, by one watch |
//! | [`ownership`] | pure: which labels, annotations and taints are ours, and the patch that changes only those |
//! | [`lease`] | pure: the Lease that says the node is alive |

pub mod lease;
pub mod live;
pub mod ownership;
pub mod render;
