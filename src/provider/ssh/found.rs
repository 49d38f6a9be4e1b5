//! What a device says of pods and containers: pure.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::provider::PodRef;
use crate::provider::runtime::{
    ContainerRef, ContainerState, Exit, ListedContainer, ListedSandbox, Listing, Sandbox, record,
};

/// Kept with a pod's folder, on one line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PodFile {
    #[serde(with = "record::pod_ref")]
    pub pod: PodRef,
    pub created_at: Timestamp,
}

/// Kept with a container's folder, on one line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Meta {
    pub container: ContainerRef,
    pub image: String,
}

/// One moment by two clocks: ours, and the time since the device was started.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Clock {
    at: Timestamp,
    up: f64,
}

impl Clock {
    /// `<milliseconds since 1970> <seconds since the start>`
    pub fn read(text: &str) -> Option<Self> {
        let (at, up) = text.trim().split_once(' ')?;
        Some(Self { at: Timestamp::from_millisecond(at.parse().ok()?).ok()?, up: up.parse().ok()? })
    }

    /// When the device had been up for so long.
    pub fn time(&self, up: &str) -> Option<Timestamp> {
        let up: f64 = up.parse().ok()?;
        let millis = ((up - self.up) * 1000.0).round();
        let moved = Duration::from_millis(millis.abs() as u64);
        let moved = if millis < 0.0 { self.at.checked_sub(moved) } else { self.at.checked_add(moved) };
        moved.ok()
    }
}

/// What is known of a container.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    pub container: ContainerRef,
    pub image: String,
    /// The number of its main process, if it has had one.
    pub pid: Option<i32>,
    pub state: ContainerState,
}

/// `C <tab> meta <tab> clock <tab> main <tab> state`
pub(super) fn container(line: &str) -> Option<Found> {
    let mut fields = line.strip_prefix("C\t")?.split('\t');
    let meta: Meta = serde_json::from_str(fields.next()?).ok()?;
    let clock = Clock::read(fields.next()?);
    let main: Vec<&str> = fields.next()?.split(' ').collect();
    let mut state = fields.next()?.split(' ');
    let up = main.get(2).copied();
    let started_at = clock.zip(up).and_then(|(clock, up)| clock.time(up));
    let state = match state.next()? {
        "created" => ContainerState::Created,
        "running" => ContainerState::Running { started_at: started_at? },
        "exited" => ContainerState::Exited(Exit {
            code: state.next()?.parse().ok()?,
            signal: None,
            started_at,
            finished_at: clock.zip(state.next()).and_then(|(c, up)| c.time(up)).unwrap_or_else(Timestamp::now),
            oom_killed: false,
            reason: None,
            message: None,
        }),
        "rebooted" => gone(started_at, "the device was restarted"),
        "lost" => {
            gone(started_at, "what kept an eye on the process was ended; the device may have been short of memory")
        }
        _ => return None,
    };
    Some(Found { pid: main[0].parse().ok(), container: meta.container, image: meta.image, state })
}

fn gone(started_at: Option<Timestamp>, message: &str) -> ContainerState {
    ContainerState::Exited(Exit {
        code: 137,
        signal: None,
        started_at,
        finished_at: Timestamp::now(),
        oom_killed: false,
        reason: Some("ContainerStatusUnknown".into()),
        message: Some(message.into()),
    })
}

/// All pods and containers of a node.
pub(super) fn listing(text: &str, ip: IpAddr, id: impl Fn(&ContainerRef) -> String) -> Listing {
    let mut listing = Listing::default();
    for line in text.lines() {
        if let Some(pod) = line.strip_prefix("P\t").and_then(|l| serde_json::from_str::<PodFile>(l).ok()) {
            let sandbox = Sandbox { ips: vec![ip] };
            listing.sandboxes.push(ListedSandbox { pod: pod.pod, sandbox, created_at: Some(pod.created_at) });
        } else if let Some(mut found) = container(line) {
            found.container.id = id(&found.container);
            listing.containers.push(ListedContainer {
                container: found.container,
                image_id: found.image.clone(),
                image: found.image,
                state: found.state,
            });
        }
    }
    listing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(clock: &str, main: &str, state: &str) -> String {
        let meta = r#"{"container":{"pod":["ns","name","uid"],"name":"main","attempt":2,"id":""},"image":"a b"}"#;
        format!("C\t{meta}\t{clock}\t{main}\t{state}")
    }

    #[test]
    fn states_are_read_with_our_own_time() {
        let clock = "1763712000000 100.50";
        let at = |millis: i64| Timestamp::from_millisecond(1_763_712_000_000 + millis).unwrap();
        let state = |main: &str, state: &str| container(&line(clock, main, state)).map(|f| f.state);
        assert_eq!(state("-", "created"), Some(ContainerState::Created));
        assert_eq!(state("7 99 101.00", "running"), Some(ContainerState::Running { started_at: at(500) }));
        let Some(ContainerState::Exited(exit)) = state("7 99 101.00", "exited 3 160.50") else { panic!("an end") };
        assert_eq!((exit.code, exit.started_at, exit.finished_at), (3, Some(at(500)), at(60_000)));
        let Some(ContainerState::Exited(exit)) = state("7 99 101.00", "rebooted") else { panic!("an end") };
        assert_eq!((exit.code, exit.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
        for wrong in ["", "exited", "exited x 1", "other"] {
            assert_eq!(state("-", wrong), None, "{wrong}");
        }
        assert_eq!(container("C\tnonsense"), None);
        assert_eq!(container(&line(clock, "7 99 1", "running")).unwrap().pid, Some(7));
    }

    #[test]
    fn a_listing_passes_over_what_it_does_not_know() {
        let pod = r#"P	{"pod":["ns","name","uid"],"created_at":"2026-11-21T08:00:00Z"}"#;
        let text = format!("noise\n{pod}\nP\tbroken\n{}\n", line("1 1", "-", "created"));
        let found = listing(&text, IpAddr::from([127, 0, 0, 1]), |c| c.name.to_string());
        assert_eq!((found.sandboxes.len(), found.containers.len()), (1, 1));
        assert_eq!(found.containers[0].container.id, "main");
    }
}
