//! Pure: which member a node belongs to, by rendezvous hashing: each node goes to the member with the highest weight
//! for its name, so that a member that comes or goes moves only its own share.

use sha2::{Digest as _, Sha256};

/// The member that a node belongs to; `None` when there is none. All replicas must agree, whatever their version.
pub(crate) fn owner<'a>(node: &str, members: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    members.into_iter().max_by_key(|member| (weight(node, member), *member))
}

fn weight(node: &str, member: &str) -> u64 {
    let digest = Sha256::new_with_prefix(member.as_bytes()).chain_update([0]).chain_update(node.as_bytes()).finalize();
    // A digest has 32 bytes.
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn shares(members: &[&'static str]) -> HashMap<String, &'static str> {
        (0..3_000)
            .map(|n| format!("edge-{n}"))
            .map(|n| (n.clone(), owner(&n, members.iter().copied()).unwrap()))
            .collect()
    }

    #[test]
    fn shares_are_alike_and_only_the_share_of_who_comes_or_goes_moves() {
        let three = shares(&["a", "b", "c"]);
        for member in ["a", "b", "c"] {
            let share = three.values().filter(|m| **m == member).count();
            assert!((900..1_100).contains(&share), "{member} has {share}");
        }
        let two = shares(&["c", "a"]);
        for (node, before) in &three {
            assert!(*before == "b" || two[node] == *before, "{node} moved from {before}");
        }
        assert_eq!(owner("edge", []), None);
    }

    #[test]
    fn every_version_of_the_program_agrees() {
        assert_eq!(owner("edge-1", ["vnode-0", "vnode-1", "vnode-2"]), Some("vnode-0"));
        assert_eq!(owner("edge-2", ["vnode-0", "vnode-1", "vnode-2"]), Some("vnode-2"));
    }
}
