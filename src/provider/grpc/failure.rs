//! From a status to what the agent may conclude. Only a definite refusal may fail a pod.

use std::time::Duration;

use tonic::{Code, Status};
use vnode_proto::metadata;

use crate::provider::ProviderError;

/// The longest that a service may ask us to wait.
const MAX_PUSHBACK: Duration = Duration::from_secs(300);

fn word<'a>(status: &'a Status, key: &str) -> Option<&'a str> {
    status.metadata().get(key).and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty())
}

/// The error of a call: `call` is its name and `of` what it was about, a pod or the node.
pub(super) fn error(call: &str, of: &str, status: &Status) -> ProviderError {
    let said = match status.message() {
        "" => "no reason given",
        message => message,
    };
    let unavailable = |message: String| {
        let pushback = word(status, metadata::RETRY).and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
        ProviderError::Unavailable {
            message: format!("{call} of {of}: {message}"),
            retry_after: pushback.map(|p| p.min(MAX_PUSHBACK)),
            source: None,
        }
    };
    match status.code() {
        Code::NotFound => ProviderError::NotFound(of.to_owned()),
        Code::InvalidArgument => ProviderError::Invalid {
            field: word(status, metadata::FIELD).unwrap_or("pod").to_owned(),
            message: said.to_owned(),
        },
        Code::FailedPrecondition => match word(status, metadata::REASON) {
            Some(reason) if is_word(reason) => {
                ProviderError::Rejected { reason: reason.to_owned(), message: said.to_owned() }
            }
            _ => unavailable(format!(
                "{said} (FAILED_PRECONDITION is taken for a refusal only with a CamelCase word in trailing metadata {})",
                metadata::REASON
            )),
        },
        Code::Unimplemented => match optional(call) {
            Some(ability) => ProviderError::Unsupported(ability),
            None => unavailable(format!(
                "the service does not have this call ({said}); is it one of vnode.provider.v1.ProviderService?"
            )),
        },
        Code::Aborted => unavailable(format!(
            "the service obeys a newer owner of this node ({said}); another replica of the operator has taken over"
        )),
        Code::Unauthenticated | Code::PermissionDenied => unavailable(format!(
            "the service does not accept our credentials ({said}); put others into the Secret that \
             spec.credentialsSecretRef names"
        )),
        Code::ResourceExhausted | Code::OutOfRange => unavailable(format!(
            "{said}; where a message is too large, raise the limit of the service, or let it list in smaller parts"
        )),
        Code::DeadlineExceeded => unavailable("the service did not answer in time".to_owned()),
        Code::Unavailable => unavailable(said.to_owned()),
        other => unavailable(format!("the service failed: {said} ({other:?})")),
    }
}

/// The ability that a service may lack, by its call.
fn optional(call: &str) -> Option<&'static str> {
    Some(match call {
        "ReadLogs" => "reading logs",
        "Exec" => "exec",
        "Attach" => "attach",
        "PortForward" => "port-forward",
        "GetStats" => "statistics",
        _ => return None,
    })
}

/// True for what may be a pod's `status.reason`.
fn is_word(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_uppercase())
        && text.chars().all(|c| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: Code, with: &[(&'static str, &str)]) -> Status {
        let mut status = Status::new(code, "said so");
        for (key, value) in with {
            status.metadata_mut().insert(*key, value.parse().unwrap());
        }
        status
    }

    #[test]
    fn only_definite_answers_let_the_agent_conclude_something() {
        let of = |code, with: &[(&'static str, &str)]| error("CreatePod", "pod a/b", &status(code, with));
        assert!(matches!(of(Code::NotFound, &[]), ProviderError::NotFound(what) if what == "pod a/b"));
        let field = of(Code::InvalidArgument, &[("vnode-field", "spec.hostPID")]);
        assert_eq!(field.to_string(), "spec.hostPID: said so");
        let refused = of(Code::FailedPrecondition, &[("vnode-reason", "QuotaExceeded")]);
        assert_eq!((refused.reason(), refused.is_final()), ("QuotaExceeded", true));
        for (code, with, want) in [
            (Code::FailedPrecondition, vec![], "vnode-reason"),
            (Code::FailedPrecondition, vec![("vnode-reason", "two words")], "vnode-reason"),
            (Code::Unimplemented, vec![], "vnode.provider.v1"),
            (Code::Aborted, vec![], "another replica"),
            (Code::Unauthenticated, vec![], "credentialsSecretRef"),
            (Code::PermissionDenied, vec![], "credentialsSecretRef"),
            (Code::ResourceExhausted, vec![], "raise the limit"),
            (Code::DeadlineExceeded, vec![], "in time"),
            (Code::Unavailable, vec![], "said so"),
            (Code::Internal, vec![], "Internal"),
            (Code::Unknown, vec![], "Unknown"),
            (Code::Cancelled, vec![], "Cancelled"),
        ] {
            let error = of(code, &with);
            assert!(matches!(error, ProviderError::Unavailable { .. }), "{code:?} changes no pod: {error:?}");
            let text = error.to_string();
            assert!(text.contains("CreatePod of pod a/b: ") && text.contains(want), "{text}");
        }
    }

    #[test]
    fn a_missing_ability_is_no_outage_and_a_missing_call_of_a_pods_life_is_no_refusal() {
        for (call, want) in [("Exec", true), ("GetStats", true), ("CreatePod", false), ("ListPods", false)] {
            let error = error(call, "x", &status(Code::Unimplemented, &[]));
            assert_eq!(matches!(error, ProviderError::Unsupported(_)), want, "{call}: {error}");
        }
    }

    #[test]
    fn the_service_says_when_to_ask_again_within_reason() {
        for (said, want) in [("1500", Some(1500)), ("999999999", Some(300_000)), ("-1", None), ("soon", None)] {
            let error = error("CreatePod", "x", &status(Code::Unavailable, &[("grpc-retry-pushback-ms", said)]));
            let ProviderError::Unavailable { retry_after, .. } = error else { panic!("{error}") };
            assert_eq!(retry_after, want.map(Duration::from_millis), "{said}");
        }
    }
}
