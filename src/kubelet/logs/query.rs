//! The query of a log request: Kubernetes' `PodLogOptions` as URL parameters.
//!
//! Pure, and free of the rest of the crate, so that it can be fuzzed alone.

use jiff::{SignedDuration, Timestamp};

/// What is asked for, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LogQuery {
    /// Go on with what is written from now on.
    pub(super) follow: bool,
    /// Of the container's run before this one.
    pub(super) previous: bool,
    /// Only so many lines from the end.
    pub(super) tail: Option<u64>,
    /// Only lines of this time or later.
    pub(super) since: Option<Timestamp>,
    /// Begin each line with its time.
    pub(super) timestamps: bool,
    /// End after so many bytes, whatever they are.
    pub(super) limit: Option<u64>,
    /// Only lines of this stream.
    pub(super) source: Option<Source>,
}

/// What a container wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Stdout,
    Stderr,
}

/// Why a query is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueryError {
    /// A value is not of its type.
    Undecodable,
    /// A value, or two together, mean nothing.
    Invalid,
}

impl LogQuery {
    /// Reads a decoded query. As in Kubernetes the first value of a name counts, and unknown names don't.
    pub(super) fn read(pairs: &[(String, String)], now: Timestamp) -> Result<Self, QueryError> {
        let value = |name: &str| pairs.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let flag = |name: &str| value(name).is_some_and(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"));
        let number =
            |name: &str| value(name).map(|v| v.parse::<i64>().map_err(|_| QueryError::Undecodable)).transpose();
        // The name that the parameter had before the API was versioned.
        let tail = match value("tail") {
            Some("all") => None,
            Some(tail) if !tail.is_empty() => Some(tail.parse::<i64>().map_err(|_| QueryError::Undecodable)?),
            _ => number("tailLines")?,
        };
        let since_seconds = number("sinceSeconds")?;
        let limit = number("limitBytes")?;
        let since_time = match value("sinceTime") {
            None | Some("" | "null") => None,
            Some(time) => Some(time.parse::<Timestamp>().map_err(|_| QueryError::Undecodable)?),
        };

        let tail = tail.map(u64::try_from).transpose().map_err(|_| QueryError::Invalid)?;
        let limit = limit.map(u64::try_from).transpose().map_err(|_| QueryError::Invalid)?;
        if limit == Some(0) || since_seconds.is_some_and(|s| s < 1) || (since_seconds.is_some() && since_time.is_some())
        {
            return Err(QueryError::Invalid);
        }
        let source = match value("stream") {
            None | Some("" | "All") => None,
            Some("Stdout") => Some(Source::Stdout),
            Some("Stderr") => Some(Source::Stderr),
            Some(_) => return Err(QueryError::Invalid),
        };
        // Kubernetes does not say yet whether the tail is taken before or after the choice.
        if source.is_some() && tail.is_some() {
            return Err(QueryError::Invalid);
        }
        let ago = |seconds| now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN);
        let since = since_time.or(since_seconds.map(ago));
        let (follow, previous, timestamps) = (flag("follow"), flag("previous"), flag("timestamps"));
        Ok(Self { follow, previous, tail, since, timestamps, limit, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<LogQuery, u16> {
        let uri: http::Uri = format!("/?{query}").parse().unwrap();
        let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&uri).unwrap().0;
        LogQuery::read(&pairs, Timestamp::from_second(1000).unwrap())
            .map_err(|e| if e == QueryError::Invalid { 422 } else { 400 })
    }

    #[test]
    fn options_are_read_as_kubelet_reads_them() {
        let at = |s| Some(Timestamp::from_second(s).unwrap());
        for (query, want) in [
            ("", Ok(LogQuery::default())),
            ("unknown=1&insecureSkipTLSVerifyBackend=true", Ok(LogQuery::default())),
            ("follow=true", Ok(LogQuery { follow: true, ..Default::default() })),
            ("follow=False&previous=0", Ok(LogQuery::default())),
            ("follow=&previous=1", Ok(LogQuery { follow: true, previous: true, ..Default::default() })),
            ("tailLines=0", Ok(LogQuery { tail: Some(0), ..Default::default() })),
            ("tailLines=5&tailLines=x", Ok(LogQuery { tail: Some(5), ..Default::default() })),
            ("tail=7&tailLines=5", Ok(LogQuery { tail: Some(7), ..Default::default() })),
            ("tail=all&tailLines=5", Ok(LogQuery::default())),
            ("sinceSeconds=10", Ok(LogQuery { since: at(990), ..Default::default() })),
            ("sinceTime=1970-01-01T00%3A10%3A00Z", Ok(LogQuery { since: at(600), ..Default::default() })),
            ("sinceTime=1970-01-01T01:10:00%2B01:00", Ok(LogQuery { since: at(600), ..Default::default() })),
            ("sinceSeconds=9223372036854775807", Ok(LogQuery { since: Some(Timestamp::MIN), ..Default::default() })),
            ("timestamps=true", Ok(LogQuery { timestamps: true, ..Default::default() })),
            ("limitBytes=9", Ok(LogQuery { limit: Some(9), ..Default::default() })),
            ("stream=All&tailLines=1", Ok(LogQuery { tail: Some(1), ..Default::default() })),
            ("stream=Stderr", Ok(LogQuery { source: Some(Source::Stderr), ..Default::default() })),
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
