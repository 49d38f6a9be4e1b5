//! `GET …/pods/{name}/log`

use serde_json::json;

use super::{dial, kubelet_of_pod, locate};
use crate::server::http::{Answer, full};
use crate::server::options::Options;
use crate::server::{Api, Call, not_found};
use crate::status::{ApiError, FieldError, Result};

/// As much of a kubelet's refusal as is shown.
const REFUSAL: usize = 2000;

pub(crate) async fn log(api: &Api, call: &Call) -> Result<Answer> {
    let name = &call.target.name;
    let query = query(name, &call.options)?;
    let pod = call.resource.get(&call.key()).ok_or_else(|| not_found(&call.kind, name))?.value();
    let container = locate::container(&pod, call.options.get("container"))?;
    let Some(node) = locate::node_of(&pod) else {
        // Not assigned yet: there is no log to show.
        let mut answer = Answer::new(full(""));
        *answer.status_mut() = http::StatusCode::NO_CONTENT;
        return Ok(answer);
    };
    let peer = kubelet_of_pod(api, call, node)?;
    let path = locate::path(&["containerLogs", &call.target.namespace, name, &container], &query);
    let request = http::Request::get(&path).body(full("")).map_err(|error| ApiError::internal(error.to_string()))?;
    let answer = dial::send(&peer, request, dial::ANSWER_DEADLINE)
        .await
        .map_err(|error| ApiError::new(500, "", format!("Get {:?}: {error}", peer.url(&path))))?;
    match answer.status().as_u16() {
        200..=206 => Ok(dial::streamed(answer)),
        code => Err(refusal(code, name, dial::text(answer, REFUSAL).await)),
    }
}

/// The kubelet's parameters. core: `ValidatePodLogOptions`.
fn query(name: &str, options: &Options) -> Result<Vec<(&'static str, String)>> {
    let mut errors = Vec::new();
    let number = |key: &str| -> Result<Option<i64>> {
        let Some(text) = options.get(key).filter(|t| !t.is_empty()) else { return Ok(None) };
        let parsed = text.parse::<i64>();
        parsed
            .map(Some)
            .map_err(|_| ApiError::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
    };
    let mut query = Vec::new();
    for flag in ["follow", "previous", "timestamps"] {
        if options.get(flag).is_some() && options.flag(flag) {
            query.push((flag, "true".to_owned()));
        }
    }
    for (key, least, detail) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ] {
        if let Some(value) = number(key)? {
            if value < least {
                errors.push(FieldError::invalid(key, &json!(value), detail));
            }
            query.push((key, value.to_string()));
        }
    }
    if let Some(time) = options.get("sinceTime").filter(|t| !t.is_empty()) {
        if options.get("sinceSeconds").is_some_and(|t| !t.is_empty()) {
            errors.clear();
            errors.push(FieldError::forbidden("[]", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
        }
        query.push(("sinceTime", time.to_owned()));
    }
    if options.get("stream").is_some_and(|s| !s.is_empty() && s != "All") {
        errors.push(FieldError::forbidden("stream", "may not be specified"));
    }
    if errors.is_empty() { Ok(query) } else { Err(ApiError::invalid("PodLogOptions", "", name, &errors)) }
}

/// A kubelet's refusal as the API server words it. registry: `GenericHttpResponseChecker`.
fn refusal(code: u16, name: &str, text: String) -> ApiError {
    let (reason, message) = match code {
        400 => return ApiError::bad_request(text),
        500 => return ApiError::internal(text),
        401 => ("Unauthorized", "the server has asked for the client to provide credentials".to_owned()),
        403 => ("Forbidden", text),
        404 => ("NotFound", "the server could not find the requested resource".to_owned()),
        405 => ("MethodNotAllowed", "the server does not allow this method on the requested resource".to_owned()),
        429 => {
            ("TooManyRequests", "the server has received too many requests and has asked us to try again later".into())
        }
        503 => ("ServiceUnavailable", "the server is currently unable to handle the request".to_owned()),
        504 => (
            "Timeout",
            "the server was unable to return a response in the time allotted, but may still be processing the request"
                .into(),
        ),
        code if code >= 500 => {
            ("InternalError", format!("an error on the server ({text:?}) has prevented the request from succeeding"))
        }
        code => {
            ("Unknown", format!("the server responded with the status code {code} but did not return more information"))
        }
    };
    let mut error = ApiError::new(code, reason, format!("{message} ( pods/log {name})"));
    error.details = json!({"name": name, "kind": "pods/log"});
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_options_are_checked_before_the_kubelet_is_asked() {
        for (asked, wanted) in [
            ("follow=1&previous=false&tailLines=3", Ok(vec![("follow", "true".into()), ("tailLines", "3".into())])),
            (
                "tailLines=-1",
                Err("PodLogOptions \"p\" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0"),
            ),
            ("tailLines=x", Err("strconv.ParseInt: parsing \"x\": invalid syntax")),
            (
                "sinceSeconds=0&sinceTime=2020-01-01T00:00:00Z",
                Err(
                    "PodLogOptions \"p\" is invalid: []: Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified",
                ),
            ),
            ("stream=Stdout", Err("PodLogOptions \"p\" is invalid: stream: Forbidden: may not be specified")),
        ] {
            let got = query("p", &Options::parse(Some(asked)));
            assert_eq!(got.as_ref().map_err(|e| e.message.as_str()), wanted.as_ref().map_err(|e| *e), "{asked}");
        }
    }
}
