//! How a simulated pod behaves: the node's configuration with the pod's annotations over it.

use std::collections::BTreeMap;

use crate::api::MockConfig;
use crate::provider::{ProviderError, Result};

/// Prefix of the annotations that override a node's configuration for a pod.
pub const ANNOTATION_PREFIX: &str = "mock.vnode.dev/";

const DAY_MS: u64 = 86_400_000;
/// kubelet: `MaxCrashLoopBackOff`
const MAX_BACKOFF_MS: u64 = 300_000;

/// How a simulated pod behaves. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub start_latency: u64,
    pub stop_latency: u64,
    pub jitter_percent: u32,
    pub run_duration: Option<u64>,
    pub exit_code: i32,
    /// How long an init container runs.
    pub init_duration: u64,
    pub init_exit_code: i32,
    pub create_failure_percent: u32,
    pub log_lines_per_minute: u32,
    /// In place of the generated words of a log line.
    pub log_text: Option<String>,
    /// The first CrashLoopBackOff; it doubles to five minutes.
    pub backoff_base: u64,
}

impl Settings {
    pub fn of_node(config: &MockConfig) -> Self {
        Self {
            start_latency: config.start_latency_ms.unwrap_or(0),
            stop_latency: config.stop_latency_ms.unwrap_or(0),
            jitter_percent: config.jitter_percent.unwrap_or(0).min(100),
            run_duration: config.run_duration_ms,
            exit_code: config.exit_code.unwrap_or(0),
            init_duration: 0,
            init_exit_code: 0,
            create_failure_percent: config.create_failure_percent.unwrap_or(0).min(100),
            log_lines_per_minute: config.log_lines_per_minute.unwrap_or(6),
            log_text: None,
            backoff_base: 10_000,
        }
    }

    /// These settings with a pod's annotations over them; `None` when it has none of ours.
    pub fn overridden(&self, annotations: Option<&BTreeMap<String, String>>) -> Result<Option<Self>> {
        let ours = annotations.into_iter().flatten().filter_map(|(k, v)| Some((k.strip_prefix(ANNOTATION_PREFIX)?, v)));
        let mut new = None;
        for (field, value) in ours {
            new.get_or_insert_with(|| self.clone()).set(field, value)?;
        }
        Ok(new)
    }

    fn set(&mut self, field: &str, value: &str) -> Result<()> {
        let number = |max: u64| -> Result<u64> {
            match value.trim().parse::<u64>() {
                Ok(n) if n <= max => Ok(n),
                _ => Err(invalid(field, format!("must be a whole number from 0 to {max}, not {value:?}"))),
            }
        };
        match field {
            "startLatencyMs" => self.start_latency = number(DAY_MS)?,
            "stopLatencyMs" => self.stop_latency = number(DAY_MS)?,
            "jitterPercent" => self.jitter_percent = number(100)? as u32,
            "runDurationMs" if value.trim().is_empty() => self.run_duration = None,
            "runDurationMs" => self.run_duration = Some(number(DAY_MS * 3650)?),
            "exitCode" => self.exit_code = number(255)? as i32,
            "initDurationMs" => self.init_duration = number(DAY_MS)?,
            "initExitCode" => self.init_exit_code = number(255)? as i32,
            "createFailurePercent" => self.create_failure_percent = number(100)? as u32,
            "logLinesPerMinute" => self.log_lines_per_minute = number(60_000)? as u32,
            "logText" if value.len() <= 4096 => self.log_text = Some(value.to_owned()),
            "logText" => return Err(invalid(field, "must be at most 4096 bytes long".into())),
            // Not 0: a container that ends at once would be restarted without end.
            "crashLoopBackOffMs" => self.backoff_base = number(MAX_BACKOFF_MS)?.max(10),
            _ => {
                return Err(invalid(
                    field,
                    "is unknown; there are startLatencyMs, stopLatencyMs, jitterPercent, runDurationMs, exitCode, \
                     initDurationMs, initExitCode, createFailurePercent, logLinesPerMinute, logText and \
                     crashLoopBackOffMs"
                        .into(),
                ));
            }
        }
        Ok(())
    }

    /// `value` with the jitter that `draw` decides.
    pub fn jittered(&self, value: u64, draw: u64) -> u64 {
        let spread = value as f64 * f64::from(self.jitter_percent) / 100.0;
        (value as f64 + spread * (unit(draw) * 2.0 - 1.0)).round() as u64
    }

    /// The CrashLoopBackOff after so many crashes in a row; none after the first. kubelet: `flowcontrol.Backoff`.
    pub fn backoff(&self, crashes: u32) -> u64 {
        match crashes {
            0 | 1 => 0,
            n => self.backoff_base.saturating_mul(1 << (n - 2).min(20)).min(MAX_BACKOFF_MS.max(self.backoff_base)),
        }
    }
}

fn invalid(field: &str, message: String) -> ProviderError {
    ProviderError::Invalid { field: format!("metadata.annotations[{ANNOTATION_PREFIX}{field}]"), message }
}

/// A number that follows from a seed and what it is for. splitmix64 over FNV-1a.
pub(super) fn draw(seed: u64, what: &[u8], n: u64) -> u64 {
    let mut z = seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for byte in what {
        z = (z ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A draw as a number from 0 to 1.
pub(super) fn unit(draw: u64) -> f64 {
    (draw >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<Option<Settings>> {
        let annotations = pairs.iter().map(|(k, v)| (format!("{ANNOTATION_PREFIX}{k}"), (*v).to_owned())).collect();
        Settings::of_node(&MockConfig::default()).overridden(Some(&annotations))
    }

    #[test]
    fn annotations_win_over_the_node() {
        let s = with(&[("startLatencyMs", "250"), ("exitCode", "3"), ("runDurationMs", "1000")]).unwrap().unwrap();
        assert_eq!((s.start_latency, s.exit_code, s.run_duration), (250, 3, Some(1000)));
        assert_eq!(with(&[]).unwrap(), None);
    }

    #[test]
    fn a_bad_value_names_its_annotation() {
        for (field, value) in
            [("exitCode", "256"), ("startLatencyMs", "soon"), ("colour", "red"), ("runDurationMs", "-1")]
        {
            match with(&[(field, value)]) {
                Err(ProviderError::Invalid { field: f, .. }) => {
                    assert_eq!(f, format!("metadata.annotations[mock.vnode.dev/{field}]"));
                }
                other => panic!("{field}={value}: {other:?}"),
            }
        }
    }

    #[test]
    fn backoff_starts_with_the_second_crash_and_doubles_to_five_minutes() {
        let s = Settings::of_node(&MockConfig::default());
        let delays: Vec<u64> = (0..9).map(|n| s.backoff(n) / 1000).collect();
        assert_eq!(delays, [0, 0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn jitter_stays_in_its_share_and_is_repeatable() {
        let s = with(&[("jitterPercent", "20")]).unwrap().unwrap();
        for n in 0..100 {
            let value = s.jittered(1000, draw(7, b"x", n));
            assert!((800..=1200).contains(&value), "{value}");
            assert_eq!(value, s.jittered(1000, draw(7, b"x", n)));
        }
    }
}
