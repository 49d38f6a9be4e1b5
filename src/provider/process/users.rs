//! As whom a container may run.

use crate::provider::{ProviderError, Result};

/// The users that a node's configuration names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Users {
    /// Whose uid we have ourselves.
    pub own: u32,
    /// Uids that pods may run as.
    pub allowed: Vec<u32>,
    /// Uid 0 may be among them.
    pub root: bool,
}

impl Users {
    /// The user of a container that asks for `wanted`.
    ///
    /// Without a wish it is the first that is allowed; without a list, ours. Root must be allowed for itself.
    pub fn choose(&self, wanted: Option<i64>) -> Result<u32> {
        let refuse = |message: String| ProviderError::Rejected { reason: "CreateContainerConfigError".into(), message };
        let user = match wanted {
            Some(wanted) => u32::try_from(wanted).map_err(|_| refuse(format!("runAsUser {wanted} is not a uid")))?,
            None => self.allowed.first().copied().unwrap_or(self.own),
        };
        if user == 0 && !self.root {
            return Err(refuse(
                "this node runs nothing as root: set securityContext.runAsUser to one of \
                 spec.provider.process.users of the VirtualNode, or allow it with allowRoot there"
                    .into(),
            ));
        }
        let listed = if self.allowed.is_empty() { user == self.own } else { self.allowed.contains(&user) };
        if !listed && user != 0 {
            return Err(refuse(format!(
                "runAsUser {user} is not among spec.provider.process.users of the VirtualNode"
            )));
        }
        if self.own != 0 && user != self.own {
            return Err(refuse(format!("runAsUser {user} is not possible: vnode itself runs as {}", self.own)));
        }
        Ok(user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_users_run_and_root_must_be_allowed() {
        let users = |own, allowed: &[u32], root| Users { own, allowed: allowed.to_vec(), root };
        for (users, wanted, want) in [
            (users(1000, &[], false), None, Some(1000)),
            (users(1000, &[], false), Some(1000), Some(1000)),
            (users(1000, &[], false), Some(0), None),
            (users(1000, &[], false), Some(1001), None),
            (users(1000, &[1001], false), Some(1001), None),
            (users(0, &[], false), None, None),
            (users(0, &[], true), None, Some(0)),
            (users(0, &[2000, 2001], false), None, Some(2000)),
            (users(0, &[2000, 2001], false), Some(2001), Some(2001)),
            (users(0, &[2000], false), Some(0), None),
            (users(0, &[2000], true), Some(0), Some(0)),
            (users(0, &[2000], false), Some(3000), None),
            (users(0, &[2000], false), Some(-1), None),
        ] {
            assert_eq!(users.choose(wanted).ok(), want, "{users:?} {wanted:?}");
        }
    }
}
