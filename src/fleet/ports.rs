//! Which node has which port.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The kubelet ports of this process. A port that a node once had is given to nobody else while it lives.
pub struct Ports {
    range: RangeInclusive<u16>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    owners: BTreeMap<u16, String>,
    ports: HashMap<String, u16>,
    /// Where to look next, so that a port that was just freed is not given out at once.
    next: u16,
}

impl Ports {
    /// Gives out the ports of a range.
    pub fn new(range: RangeInclusive<u16>) -> Self {
        let state = State { next: *range.start(), ..State::default() };
        Self { range, state: Mutex::new(state) }
    }

    /// Makes a port a node's; false when it is another's.
    pub fn claim(&self, node: &str, port: u16) -> bool {
        let mut state = self.lock();
        if state.owners.get(&port).is_some_and(|owner| owner != node) {
            return false;
        }
        if let Some(old) = state.ports.insert(node.to_owned(), port)
            && old != port
        {
            state.owners.remove(&old);
        }
        state.owners.insert(port, node.to_owned());
        true
    }

    /// Who has a port.
    pub fn owner(&self, port: u16) -> Option<String> {
        self.lock().owners.get(&port).cloned()
    }

    /// A free port of the range for a node; `None` when there is none left.
    pub fn take(&self, node: &str) -> Option<u16> {
        let mut state = self.lock();
        let (start, end) = (*self.range.start(), *self.range.end());
        let from = state.next.clamp(start, end);
        let port = (from..=end).chain(start..from).find(|p| !state.owners.contains_key(p))?;
        state.next = if port == end { start } else { port + 1 };
        if let Some(old) = state.ports.insert(node.to_owned(), port) {
            state.owners.remove(&old);
        }
        state.owners.insert(port, node.to_owned());
        Some(port)
    }

    /// Frees a node's port.
    pub fn release(&self, node: &str) {
        let mut state = self.lock();
        if let Some(port) = state.ports.remove(node) {
            state.owners.remove(&port);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_one_owner_and_a_node_one_port() {
        let ports = Ports::new(100..=102);
        assert!(ports.claim("a", 101));
        assert!(!ports.claim("b", 101));
        assert!(ports.claim("a", 101), "again is no harm");
        assert_eq!(ports.take("b"), Some(100));
        assert_eq!(ports.take("c"), Some(102));
        assert_eq!(ports.take("d"), None, "the range is used up");
        ports.release("a");
        assert_eq!(ports.take("d"), Some(101));
        assert!(ports.claim("d", 500), "a port outside the range may be asked for");
        assert_eq!((ports.owner(101), ports.owner(500)), (None, Some("d".into())));
    }

    #[test]
    fn a_freed_port_is_given_out_last() {
        let ports = Ports::new(1..=3);
        assert_eq!(ports.take("a"), Some(1));
        ports.release("a");
        assert_eq!((ports.take("b"), ports.take("c"), ports.take("d")), (Some(2), Some(3), Some(1)));
    }
}
