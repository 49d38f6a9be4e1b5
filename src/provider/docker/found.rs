//! What an engine says of a container. Only the members that matter, and none of them required: engines differ.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};

use super::names::Labels;
use crate::provider::runtime::{ContainerState, Exit};
use crate::provider::{InterfaceUsage, NetworkUsage};

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// One entry of a list of containers.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Summary {
    pub id: String,
    #[serde(deserialize_with = "or_default")]
    pub labels: Labels,
    pub state: String,
}

/// A container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Found {
    pub id: String,
    pub created: String,
    pub state: State,
    pub config: Config,
    #[serde(deserialize_with = "or_default")]
    pub network_settings: Network,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Config {
    #[serde(deserialize_with = "or_default")]
    pub labels: Labels,
    #[serde(deserialize_with = "or_default")]
    pub user: String,
    pub tty: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct State {
    pub status: String,
    pub running: bool,
    pub pid: i32,
    pub exit_code: i32,
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    #[serde(deserialize_with = "or_default")]
    pub error: String,
    pub started_at: String,
    pub finished_at: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Network {
    #[serde(rename = "IPAddress", deserialize_with = "or_default")]
    pub ip_address: String,
    #[serde(deserialize_with = "or_default")]
    pub networks: HashMap<String, Endpoint>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Endpoint {
    #[serde(rename = "IPAddress", deserialize_with = "or_default")]
    pub ip_address: String,
    #[serde(rename = "GlobalIPv6Address", deserialize_with = "or_default")]
    pub ipv6_address: String,
}

/// An image.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct FoundImage {
    pub id: String,
    #[serde(deserialize_with = "or_default")]
    pub repo_digests: Vec<String>,
    pub size: Option<u64>,
    #[serde(deserialize_with = "or_default")]
    pub config: Config,
}

/// What a container uses.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct FoundUsage {
    pub cpu_stats: CpuUsage,
    pub memory_stats: MemoryUsage,
    /// By interface; missing where the network is another container's or the host's.
    #[serde(deserialize_with = "or_default")]
    pub networks: BTreeMap<String, InterfaceFigures>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct InterfaceFigures {
    rx_bytes: Option<u64>,
    rx_errors: Option<u64>,
    tx_bytes: Option<u64>,
    tx_errors: Option<u64>,
}

impl FoundUsage {
    /// What went over the container's own network.
    pub fn network(self, time: Timestamp) -> Option<NetworkUsage> {
        let of = |(name, i): (String, InterfaceFigures)| {
            let InterfaceFigures { rx_bytes, rx_errors, tx_bytes, tx_errors } = i;
            InterfaceUsage { name, rx_bytes, rx_errors, tx_bytes, tx_errors }
        };
        let interfaces: Vec<_> = self.networks.into_iter().map(of).collect();
        (!interfaces.is_empty()).then_some(NetworkUsage { time, interfaces })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CpuUsage {
    pub cpu_usage: TotalUsage,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TotalUsage {
    pub total_usage: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct MemoryUsage {
    pub usage: Option<u64>,
    #[serde(deserialize_with = "or_default")]
    pub stats: HashMap<String, u64>,
}

impl MemoryUsage {
    /// What cannot be reclaimed under pressure. kubelet, by cAdvisor: usage without inactive file pages.
    pub fn working_set(&self) -> Option<u64> {
        let inactive = self.stats.get("total_inactive_file").or_else(|| self.stats.get("inactive_file"));
        self.usage.map(|used| used.saturating_sub(inactive.copied().unwrap_or_default()))
    }
}

/// Engines write the year 1 for "never".
pub(super) fn time(text: &str) -> Option<Timestamp> {
    text.parse::<Timestamp>().ok().filter(|t| t.as_second() > 0)
}

impl State {
    /// Where a container with this state is in its life.
    pub fn of_container(&self) -> ContainerState {
        let (started_at, finished_at) = (time(&self.started_at), time(&self.finished_at));
        match (self.status.as_str(), finished_at) {
            // `stopped` is Podman's word for one whose end is not written down yet.
            ("exited" | "dead" | "removing" | "stopped", Some(finished_at)) if !self.running => {
                ContainerState::Exited(Exit {
                    code: self.exit_code,
                    signal: None,
                    started_at,
                    finished_at,
                    oom_killed: self.oom_killed,
                    reason: None,
                    message: Some(self.error.clone()).filter(|e| !e.is_empty()),
                })
            }
            _ => match started_at {
                Some(started_at) if self.status != "created" => ContainerState::Running { started_at },
                _ => ContainerState::Created,
            },
        }
    }
}

impl Found {
    /// Its addresses, IPv4 first.
    pub fn ips(&self) -> Vec<IpAddr> {
        let settings = &self.network_settings;
        let mut networks: Vec<_> = settings.networks.iter().collect();
        networks.sort_by_key(|(name, _)| name.as_str());
        let v4 = networks.iter().map(|(_, e)| &e.ip_address).chain([&settings.ip_address]);
        let v6 = networks.iter().map(|(_, e)| &e.ipv6_address);
        let mut ips: Vec<IpAddr> = Vec::new();
        for ip in v4.chain(v6).filter_map(|text| text.parse().ok()) {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
        ips
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: &str = "2026-11-21T08:00:00.5Z";
    const NEVER: &str = "0001-01-01T00:00:00Z";

    fn word(status: &str, running: bool, started: &str, finished: &str) -> &'static str {
        let state = State {
            status: status.into(),
            running,
            started_at: started.into(),
            finished_at: finished.into(),
            ..State::default()
        };
        match state.of_container() {
            ContainerState::Created => "created",
            ContainerState::Running { .. } => "running",
            ContainerState::Exited(_) => "exited",
        }
    }

    #[test]
    fn a_containers_state_is_read_as_each_engine_writes_it() {
        for (status, running, started, finished, want) in [
            ("created", false, NEVER, NEVER, "created"),
            ("configured", false, NEVER, NEVER, "created"),
            ("initialized", false, NEVER, NEVER, "created"),
            ("running", true, T, NEVER, "running"),
            ("paused", true, T, NEVER, "running"),
            ("stopping", false, T, NEVER, "running"),
            ("stopped", false, T, NEVER, "running"),
            ("stopped", false, T, T, "exited"),
            ("exited", false, T, T, "exited"),
            ("dead", false, T, T, "exited"),
        ] {
            assert_eq!(word(status, running, started, finished), want, "{status} {running}");
        }
    }

    #[test]
    fn answers_with_nulls_and_unknown_members_are_read() {
        let text = r#"{"Id":"a","State":{"Status":"running","Running":true,"OOMKilled":true,"Health":null},
            "Config":{"Labels":null,"Extra":1},"NetworkSettings":{"IPAddress":"10.88.0.2","Networks":
            {"podman":{"IPAddress":"10.88.0.2","GlobalIPv6Address":"fd00::2"},"none":{"IPAddress":null}}}}"#;
        let found: Found = serde_json::from_str(text).unwrap();
        assert!(found.state.oom_killed);
        assert_eq!(found.ips(), ["10.88.0.2".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]);
        let usage = r#"{"memory_stats":{"usage":100,"stats":{"inactive_file":40}},"cpu_stats":{}}"#;
        let usage: FoundUsage = serde_json::from_str(usage).unwrap();
        assert_eq!(usage.memory_stats.working_set(), Some(60));
        assert_eq!(usage.network(Timestamp::UNIX_EPOCH), None);
        let usage = r#"{"networks":{"eth0":{"rx_bytes":7,"rx_packets":1,"tx_bytes":null}}}"#;
        let usage: FoundUsage = serde_json::from_str(usage).unwrap();
        let interfaces = usage.network(Timestamp::UNIX_EPOCH).unwrap().interfaces;
        assert_eq!((interfaces[0].name.as_str(), interfaces[0].rx_bytes), ("eth0", Some(7)));
        assert_eq!(interfaces[0].tx_bytes, None);
    }
}
