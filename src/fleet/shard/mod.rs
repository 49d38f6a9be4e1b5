//! Which replica of the operator runs which node: every node is one replica's at a time.
//!
//! ```text
//!  members ─Leases in the operator's namespace─▶ view ─▶ who is alive ─▶ ring ─▶ whose a node should be
//!                                                                                  │
//!  the node's own Lease (kube-node-lease) ─▶ lock ─▶ whose it is ◀─── acquire, hand_over
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`ring`] | pure: from a node's name and the members to its owner |
//! | [`view`] | pure: who is alive |
//! | [`members`] | this replica's own Lease, and the watch of the others' |
//! | `lock` | the node's Lease: taken, renewed, given up, each with its version as the fence |
//! | `handover` | gives a node to its new owner, a few at a time |
//!
//! A replica that lost its way stops by its own clock ([`Fence`](crate::cluster::fence::Fence)) before the others may
//! take over, and what it sends late fails at the version of the node's Lease.

pub(super) mod handover;
pub(super) mod lock;
pub(super) mod members;
pub(crate) mod ring;
pub(crate) mod view;

use std::sync::Arc;

use super::Fleet;
use crate::api::VirtualNode;
use crate::provider::registry;
use members::News;

/// Whose a node should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// This replica's.
    Ours,
    /// Another's.
    Theirs,
    /// Not known at this moment.
    Unknown,
}

impl Fleet {
    /// Whose a node should be. What runs on the machine of a replica stays with that replica.
    pub(super) fn share(&self, name: &str, vn: &VirtualNode) -> Share {
        if self.alone.is_some() {
            return Share::Ours;
        }
        let shard = vn.status.as_ref().and_then(|s| s.shard.as_deref()).filter(|s| !s.is_empty());
        let owner = match shard.filter(|_| registry::global().is_pinned(&vn.spec.provider)) {
            Some(shard) => Some(shard.to_owned()),
            None => self.members.owner(name),
        };
        match owner {
            Some(owner) if owner == self.config.identity => Share::Ours,
            Some(_) => Share::Theirs,
            None => Share::Unknown,
        }
    }

    /// What to do when other members are alive, or when this one was silent for too long.
    pub(super) fn on_news(self: &Arc<Self>, news: News) {
        match news {
            News::Term => {
                let agents = self.agents.read().unwrap_or_else(std::sync::PoisonError::into_inner);
                agents.keys().for_each(|name| self.beats.add(name.clone()));
            }
            News::Members => {
                self.all_sets();
                for vn in self.virtual_nodes.state() {
                    let Some(name) = vn.metadata.name.as_deref() else { continue };
                    let held = self.agent(name).is_some_and(|agent| agent.hold.is_valid());
                    if (self.share(name, &vn) == Share::Ours) != held {
                        self.queue.add(name.into());
                    }
                }
            }
        }
    }
}
