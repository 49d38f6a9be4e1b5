//! How a command ended, as clients are told on the error channel.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusCause, StatusDetails};

use crate::provider::{ExitStatus, ProviderError};

/// How a `Status` is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StatusForm {
    /// Up to version 3: the message of a failure, nothing for a success.
    Text,
    /// From version 4: always, as JSON.
    Json,
}

/// The outcome of a command as a `Status`.
pub(super) fn status(outcome: &Result<ExitStatus, ProviderError>) -> Status {
    let failure = |reason: &str, code: Option<i32>, message: String| Status {
        status: Some("Failure".into()),
        reason: Some(reason.into()),
        message: Some(message),
        code,
        ..Status::default()
    };
    match outcome {
        Ok(ExitStatus { code: 0 }) => Status { status: Some("Success".into()), ..Status::default() },
        Ok(ExitStatus { code }) => Status {
            details: Some(StatusDetails {
                causes: Some(vec![StatusCause {
                    reason: Some("ExitCode".into()),
                    message: Some(code.to_string()),
                    ..StatusCause::default()
                }]),
                ..StatusDetails::default()
            }),
            ..failure(
                "NonZeroExitCode",
                None,
                format!("command terminated with non-zero exit code: command terminated with exit code {code}"),
            )
        },
        Err(error) => {
            let message = format!("error executing command in container: {error}");
            match error {
                ProviderError::NotFound(_) => failure("NotFound", Some(404), message),
                ProviderError::Unsupported(_) => failure("NotImplemented", Some(501), message),
                ProviderError::Unavailable { .. } => failure("ServiceUnavailable", Some(503), message),
                ProviderError::Invalid { .. } | ProviderError::Rejected { .. } => {
                    failure("BadRequest", Some(400), message)
                }
            }
        }
    }
}

/// The bytes of a `Status`; none when this form has nothing to say.
pub(super) fn encode(status: &Status, form: StatusForm) -> Vec<u8> {
    match form {
        // A structure of strings always serialises.
        StatusForm::Json => serde_json::to_vec(status).unwrap_or_default(),
        StatusForm::Text if status.status.as_deref() == Some("Success") => Vec::new(),
        StatusForm::Text => status.message.clone().unwrap_or_default().into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn as_json(outcome: Result<ExitStatus, ProviderError>) -> Value {
        serde_json::from_slice(&encode(&status(&outcome), StatusForm::Json)).unwrap()
    }

    #[test]
    fn an_exit_code_is_the_cause_of_its_status() {
        assert_eq!(as_json(Ok(ExitStatus { code: 0 }))["status"], "Success");
        let failed = as_json(Ok(ExitStatus { code: 3 }));
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"], json!([{"reason": "ExitCode", "message": "3"}]));
        let missing = as_json(Err(ProviderError::NotFound("container \"c\"".into())));
        assert_eq!((&missing["reason"], &missing["code"]), (&json!("NotFound"), &json!(404)));
    }

    #[test]
    fn old_clients_read_a_failure_as_text_and_a_success_as_silence() {
        let text = |code| String::from_utf8(encode(&status(&Ok(ExitStatus { code })), StatusForm::Text)).unwrap();
        assert_eq!(text(0), "");
        assert!(text(3).contains("exit code 3"));
    }
}
