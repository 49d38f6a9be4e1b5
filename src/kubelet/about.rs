//! `/configz`, `/statusz` and `/flagz`: what the kubelet API says of itself.
//!
//! As much as means something here, in the shapes that tools expect of a kubelet. Nothing of it differs by node.

use std::fmt::Write as _;
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use serde_json::json;

use super::KubeletServer;
use super::connection::text;
use super::handler::{Answered, JSON, TEXT};
use crate::api::names;

/// What Kubernetes' components say at the head of such pages.
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                       guarantees and is for debugging purposes only.";

/// A `KubeletConfiguration` with the fields that hold here.
pub(super) fn configz(server: &KubeletServer) -> Answered {
    let streams = &server.options.streams;
    let auth = server.auth.options();
    let seconds = |d: Duration| format!("{}s", d.as_secs());
    let config = json!({"kubeletconfig": {
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "enableServer": true,
        "readOnlyPort": 0,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true, "cacheTTL": seconds(auth.token_ttl)},
        },
        "authorization": {
            "mode": "Webhook",
            "webhook": {
                "cacheAuthorizedTTL": seconds(auth.allow_ttl),
                "cacheUnauthorizedTTL": seconds(auth.deny_ttl),
            },
        },
        "streamingConnectionIdleTimeout": seconds(streams.idle_timeout),
        "nodeStatusUpdateFrequency": seconds(names::NODE_STATUS_INTERVAL),
        "nodeLeaseDurationSeconds": names::LEASE_DURATION.as_secs(),
        "enableDebuggingHandlers": true,
        "enableSystemLogHandler": false,
        "enableProfilingHandler": false,
        "featureGates": {"KubeletFineGrainedAuthz": true},
    }});
    Ok(text(StatusCode::OK, JSON, config.to_string()))
}

/// Since when it runs and what can be asked.
pub(super) fn statusz(server: &KubeletServer) -> Answered {
    let (started, now) = (server.started, Timestamp::now());
    let up = now.duration_since(started).as_secs().max(0);
    let page = format!(
        "\nkubelet statusz\n{WARNING}\n\nStarted: {}\nUp: {} hr {:02} min {:02} sec\nBinary version: {}\n\nPaths: \
         /configz /containerLogs /flagz /healthz /metrics /pods /runningpods /stats/summary /statusz\n",
        started.strftime("%a %b %e %H:%M:%S UTC %Y"),
        up / 3600,
        up / 60 % 60,
        up % 60,
        env!("CARGO_PKG_VERSION"),
    );
    Ok(text(StatusCode::OK, TEXT, page))
}

/// The limits that hold, under the names of flags.
pub(super) fn flagz(server: &KubeletServer) -> Answered {
    let options = &server.options;
    let mut page = format!("\nkubelet flagz\n{WARNING}\n\n");
    for (name, value) in [
        ("anonymous-auth", "false".to_owned()),
        ("authorization-mode", "Webhook".to_owned()),
        ("max-connections", options.max_connections.to_string()),
        ("max-connections-per-client", options.max_connections_per_client.to_string()),
        ("streaming-connection-idle-timeout", format!("{}s", options.streams.idle_timeout.as_secs())),
        ("streaming-creation-timeout", format!("{}s", options.streams.creation_timeout.as_secs())),
    ] {
        // Writing to a String cannot fail.
        let _ = writeln!(page, "{name}={value}");
    }
    Ok(text(StatusCode::OK, TEXT, page))
}
