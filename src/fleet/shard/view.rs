//! Pure: which replicas are alive, by what is seen of their Leases.
//!
//! Clocks of different machines are not compared: a member is dead when its Lease has not changed for
//! [`MEMBER_TTL`] of our own time, as in Kubernetes' leader election. Our own renewals come through the same watch,
//! so that a watch that is cut makes nobody look dead.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// How long a member's Lease may stay unchanged.
pub(crate) const MEMBER_TTL: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
struct Seen {
    /// `resourceVersion` of its Lease.
    version: String,
    /// When that was first seen.
    since: Instant,
}

/// What is seen of the members' Leases.
#[derive(Debug)]
pub(crate) struct View {
    me: String,
    members: BTreeMap<String, Seen>,
    /// When our own renewals were last seen: all that happened before the older one is known.
    own: (Option<Instant>, Option<Instant>),
}

impl View {
    pub fn new(me: &str) -> Self {
        Self { me: me.into(), members: BTreeMap::new(), own: (None, None) }
    }

    /// A member's Lease was seen.
    pub fn saw(&mut self, member: &str, version: &str, now: Instant) {
        match self.members.get_mut(member) {
            Some(seen) if seen.version == version => return,
            Some(seen) => *seen = Seen { version: version.into(), since: now },
            None => {
                self.members.insert(member.into(), Seen { version: version.into(), since: now });
            }
        }
        if member == self.me {
            self.own = (self.own.1, Some(now));
        }
    }

    /// A member has left.
    pub fn gone(&mut self, member: &str) {
        self.members.remove(member);
    }

    /// Those that were not listed have left.
    pub fn retain(&mut self, listed: impl Fn(&str) -> bool) {
        self.members.retain(|member, _| listed(member));
    }

    /// The members that are alive, in order.
    pub fn alive(&self) -> Vec<String> {
        self.members.iter().filter(|(_, seen)| !self.is_late(seen)).map(|(member, _)| member.clone()).collect()
    }

    /// The version of a dead member's Lease.
    pub fn dead(&self, member: &str) -> Option<&str> {
        self.members.get(member).filter(|seen| self.is_late(seen)).map(|seen| &*seen.version)
    }

    /// The members that have been dead for a while, with the version of their Leases.
    pub fn long_dead(&self, time: Duration) -> Vec<(String, String)> {
        let Some(known) = self.own.0 else { return Vec::new() };
        let late = |seen: &Seen| known.saturating_duration_since(seen.since) > MEMBER_TTL + time;
        self.members.iter().filter(|(_, s)| late(s)).map(|(m, s)| (m.clone(), s.version.clone())).collect()
    }

    fn is_late(&self, seen: &Seen) -> bool {
        self.own.0.is_some_and(|known| known.saturating_duration_since(seen.since) > MEMBER_TTL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn who_stops_renewing_is_dead_unless_it_is_we_who_do_not_see() {
        let start = Instant::now();
        let at = |s: u32| start + S * s;
        let mut view = View::new("me");
        view.saw("other", "1", at(0));
        view.saw("me", "2", at(0));
        assert_eq!(view.alive(), ["me", "other"]);
        // Both renew.
        view.saw("other", "3", at(5));
        view.saw("me", "4", at(6));
        // The watch is cut for a minute; then our own renewal comes first.
        view.saw("me", "5", at(66));
        assert_eq!(view.alive(), ["me", "other"], "its renewals may be on their way");
        view.saw("other", "6", at(66));
        view.saw("me", "7", at(68));
        assert_eq!(view.alive(), ["me", "other"]);
        // The other stops.
        for (version, second) in [("8", 70), ("9", 72), ("10", 74), ("11", 76), ("12", 78)] {
            view.saw("me", version, at(second));
            view.saw("other", "6", at(second)); // a new list shows the same
            assert_eq!(view.alive().len(), 2, "{second}");
        }
        view.saw("me", "13", at(79));
        view.saw("me", "14", at(80));
        assert_eq!(view.alive(), ["me"]);
        assert_eq!(view.dead("other"), Some("6"));
        assert!(view.long_dead(S * 60).is_empty());
        view.saw("other", "15", at(81));
        assert_eq!(view.alive(), ["me", "other"], "it is back");
        view.gone("other");
        assert_eq!(view.alive(), ["me"]);
    }
}
