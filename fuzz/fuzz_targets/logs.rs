#![no_main]
//! Queries of log requests: nothing panics, and what is accepted makes sense.

#[path = "../../src/kubelet/logs/query.rs"]
#[allow(dead_code)]
mod query;

use jiff::Timestamp;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let pairs: Vec<(String, String)> = text
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let now = Timestamp::from_second(1_700_000_000).unwrap();
    if let Ok(query) = query::LogQuery::read(&pairs, now) {
        assert_ne!(query.limit, Some(0));
        assert!(query.source.is_none() || query.tail.is_none());
    }
});
