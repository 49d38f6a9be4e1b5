//! The query of a log request: Kubernetes' `PodLogOptions` as URL parameters.

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};

use crate::kubelet::handler::Refusal;
use crate::provider::{LogOptions, LogSource};

/// What is asked for, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LogQuery {
    /// The part that the provider takes care of.
    pub(super) options: LogOptions,
    /// Begin each line with its time.
    pub(super) timestamps: bool,
    /// End after so many bytes, whatever they are.
    pub(super) limit: Option<u64>,
    /// Only lines of this stream.
    pub(super) source: Option<LogSource>,
}

fn undecodable() -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, r#"{"message": "Unable to decode query."}"#)
}

fn invalid() -> Refusal {
    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, r#"{"message": "Invalid request."}"#)
}

impl LogQuery {
    /// Reads a decoded query. As in Kubernetes the first value of a name counts, and unknown names don't.
    pub(super) fn read(pairs: &[(String, String)], now: Timestamp) -> Result<Self, Refusal> {
        let value = |name: &str| pairs.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let flag = |name: &str| value(name).is_some_and(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"));
        let number = |name: &str| value(name).map(|v| v.parse::<i64>().map_err(|_| undecodable())).transpose();
        // The name that the parameter had before the API was versioned.
        let tail = match value("tail") {
            Some("all") => None,
            Some(tail) if !tail.is_empty() => Some(tail.parse::<i64>().map_err(|_| undecodable())?),
            _ => number("tailLines")?,
        };
        let since_seconds = number("sinceSeconds")?;
        let limit = number("limitBytes")?;
        let since_time = match value("sinceTime") {
            None | Some("" | "null") => None,
            Some(time) => Some(time.parse::<Timestamp>().map_err(|_| undecodable())?),
        };

        let tail = tail.map(u64::try_from).transpose().map_err(|_| invalid())?;
        let limit = limit.map(u64::try_from).transpose().map_err(|_| invalid())?;
        if limit == Some(0) || since_seconds.is_some_and(|s| s < 1) || (since_seconds.is_some() && since_time.is_some())
        {
            return Err(invalid());
        }
        let source = match value("stream") {
            None | Some("" | "All") => None,
            Some("Stdout") => Some(LogSource::Stdout),
            Some("Stderr") => Some(LogSource::Stderr),
            Some(_) => return Err(invalid()),
        };
        // Kubernetes does not say yet whether the tail is taken before or after the choice.
        if source.is_some() && tail.is_some() {
            return Err(invalid());
        }
        let ago = |seconds| now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN);
        let since = since_time.or(since_seconds.map(ago));
        let options = LogOptions { follow: flag("follow"), previous: flag("previous"), tail, since };
        Ok(Self { options, timestamps: flag("timestamps"), limit, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<LogQuery, u16> {
        let uri: http::Uri = format!("/?{query}").parse().unwrap();
        let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&uri).unwrap().0;
        LogQuery::read(&pairs, Timestamp::from_second(1000).unwrap()).map_err(|r| r.status.as_u16())
    }

    #[test]
    fn options_are_read_as_kubelet_reads_them() {
        let at = |s| Some(Timestamp::from_second(s).unwrap());
        let options = |options| Ok(LogQuery { options, ..Default::default() });
        for (query, want) in [
            ("", Ok(LogQuery::default())),
            ("unknown=1&insecureSkipTLSVerifyBackend=true", Ok(LogQuery::default())),
            ("follow=true", options(LogOptions { follow: true, ..Default::default() })),
            ("follow=False&previous=0", Ok(LogQuery::default())),
            ("follow=&previous=1", options(LogOptions { follow: true, previous: true, ..Default::default() })),
            ("tailLines=0", options(LogOptions { tail: Some(0), ..Default::default() })),
            ("tailLines=5&tailLines=x", options(LogOptions { tail: Some(5), ..Default::default() })),
            ("tail=7&tailLines=5", options(LogOptions { tail: Some(7), ..Default::default() })),
            ("tail=all&tailLines=5", Ok(LogQuery::default())),
            ("sinceSeconds=10", options(LogOptions { since: at(990), ..Default::default() })),
            ("sinceTime=1970-01-01T00%3A10%3A00Z", options(LogOptions { since: at(600), ..Default::default() })),
            ("sinceTime=1970-01-01T01:10:00%2B01:00", options(LogOptions { since: at(600), ..Default::default() })),
            (
                "sinceSeconds=9223372036854775807",
                options(LogOptions { since: Some(Timestamp::MIN), ..Default::default() }),
            ),
            ("timestamps=true", Ok(LogQuery { timestamps: true, ..Default::default() })),
            ("limitBytes=9", Ok(LogQuery { limit: Some(9), ..Default::default() })),
            ("stream=All&tailLines=1", options(LogOptions { tail: Some(1), ..Default::default() })),
            ("stream=Stderr", Ok(LogQuery { source: Some(LogSource::Stderr), ..Default::default() })),
            ("tailLines=x", Err(400)),
            ("tailLines=", Err(400)),
            ("tailLines=99999999999999999999", Err(400)),
            ("limitBytes=1.5", Err(400)),
            ("sinceTime=yesterday", Err(400)),
            ("tailLines=-1", Err(422)),
            ("limitBytes=0", Err(422)),
            ("limitBytes=-1", Err(422)),
            ("sinceSeconds=0", Err(422)),
            ("sinceSeconds=5&sinceTime=1970-01-01T00:10:00Z", Err(422)),
            ("stream=both", Err(422)),
            ("stream=Stdout&tailLines=1", Err(422)),
        ] {
            assert_eq!(read(query), want, "{query}");
        }
    }
}
