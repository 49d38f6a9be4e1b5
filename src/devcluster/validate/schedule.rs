//! When a CronJob runs: five fields or a macro, as `cron` has them, in a time zone.

use jiff::tz::TimeZone;

/// When something is to be done again and again.
#[derive(Debug)]
pub(crate) enum Schedule {
    /// At times that five fields pick.
    Fields(Box<croner::Cron>),
    /// This long after the last time, as in `@every 5m`.
    Every(jiff::SignedDuration),
}

/// Reads a schedule; an error says what is wrong with it.
pub(crate) fn parse(text: &str) -> Result<Schedule, String> {
    if text.contains("TZ") {
        return Err("cannot use TZ or CRON_TZ in schedule, use timeZone field instead".into());
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if !text.starts_with('@') && fields.len() != 5 {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    if let Some(length) = text.strip_prefix("@every ") {
        let fault = || format!("failed to parse duration {text}: time: invalid duration {length:?}");
        let length: jiff::SignedDuration = length.trim().parse().map_err(|_| fault())?;
        // Shorter than a second is a second, and parts of one do not count.
        return Ok(Schedule::Every(jiff::SignedDuration::from_secs(length.as_secs().max(1))));
    }
    let plan = croner::parser::CronParser::new().parse(text);
    plan.map(|plan| Schedule::Fields(Box::new(plan))).map_err(|error| error.to_string())
}

/// The zone that a schedule is meant in; that of the cluster, UTC, when none is named.
pub(crate) fn zone(name: Option<&str>) -> Result<TimeZone, String> {
    match name {
        None => Ok(TimeZone::UTC),
        Some("") => Err("timeZone must be nil or non-empty string".into()),
        Some(name) => TimeZone::get(name).map_err(|_| format!("unknown time zone {name}")),
    }
}
