//! Requests and answers: bodies with limits and deadlines, content negotiation, warnings.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use serde_json::Value;

use crate::status::{ApiError, Result};

/// Errors in the middle of a streamed answer end the connection.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;
pub(crate) type Answer = Response<Body>;
/// What a request brings: as it comes in, or read already.
pub(crate) type Asking = Either<Incoming, Full<Bytes>>;

/// What the API server accepts in one request. apiserver: `MaxRequestBodyBytes`.
const BODY_LIMIT: usize = 3 << 20;
const BODY_DEADLINE: Duration = Duration::from_secs(60);
/// How much of a body that is too large is read and dropped: a client that is still sending hears the answer only when
/// somebody listens.
const DRAINED: usize = 32 << 20;
/// How deep bodies may nest. Everything that walks objects recurses, and managed fields nest a little deeper than the
/// object that they describe.
pub(crate) const DEPTH_LIMIT: usize = 100;

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

pub(crate) fn streamed(chunks: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Body {
    use futures::TryStreamExt;
    StreamBody::new(chunks.map_ok(Frame::data)).boxed_unsync()
}

pub(crate) fn answer(code: u16, content_type: &'static str, body: Body) -> Answer {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub(crate) fn json_bytes(code: u16, bytes: impl Into<Bytes>) -> Answer {
    answer(code, "application/json", full(bytes))
}

pub(crate) fn json(code: u16, value: &Value) -> Answer {
    json_bytes(code, value.to_string())
}

pub(crate) fn text(code: u16, text: impl Into<Bytes>) -> Answer {
    answer(code, "text/plain; charset=utf-8", full(text))
}

pub(crate) fn failure(error: &ApiError) -> Answer {
    let mut answer = json(error.code, &error.body());
    if let Some(seconds) = error.details["retryAfterSeconds"].as_u64() {
        answer.headers_mut().insert("retry-after", seconds.into());
    }
    warn(&mut answer, &error.warnings);
    answer
}

/// Adds `Warning` headers, as kubectl prints them.
pub(crate) fn warn(answer: &mut Answer, warnings: &[String]) {
    for warning in warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            answer.headers_mut().append("warning", value);
        }
    }
}

/// Reads a whole body within its limit and its time.
pub(crate) async fn read_body(body: Asking) -> Result<Bytes> {
    match tokio::time::timeout(BODY_DEADLINE, collect(body)).await {
        Ok(read) => read,
        Err(_) => Err(ApiError::new(408, "Timeout", "timed out reading the body")),
    }
}

async fn collect(mut body: Asking) -> Result<Bytes> {
    let too_large = || {
        let message = format!("Request entity too large: limit is {BODY_LIMIT}");
        ApiError::new(413, "RequestEntityTooLarge", message)
    };
    if body.size_hint().lower() > DRAINED as u64 {
        return Err(too_large());
    }
    let (mut first, mut more, mut length) = (Bytes::new(), Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::bad_request(format!("unable to read the body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length > DRAINED {
            break;
        }
        if length > BODY_LIMIT {
            (first, more) = (Bytes::new(), Vec::new());
        } else if length == data.len() {
            // Small bodies come in one piece and are not copied.
            first = data;
        } else {
            if more.is_empty() {
                more.extend_from_slice(&first);
            }
            more.extend_from_slice(&data);
        }
    }
    match length {
        length if length > BODY_LIMIT => Err(too_large()),
        _ if more.is_empty() => Ok(first),
        _ => Ok(more.into()),
    }
}

/// The media type of the body, without parameters and in lower case.
pub(crate) fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Parses a JSON, YAML or protobuf body into an object.
pub(crate) fn parse(content_type: &str, body: &[u8]) -> Result<Value> {
    parse_as("Object", content_type, body)
}

/// What a body must at least be, as the API server shows it.
const TYPE_META: &str =
    r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;

/// Parses a body that should be an object of `kind`, which is named when it is not.
pub(crate) fn parse_as(kind: &str, content_type: &str, body: &[u8]) -> Result<Value> {
    let unversioned = |fault: String| format!("couldn't get version/kind; json parse error: {fault}");
    let parsed: Result<Value, String> = match content_type {
        "" | "application/json" | "*/*" => {
            serde_json::from_slice(body).map_err(|_| super::scan::fault(body)).and_then(shallow).map_err(unversioned)
        }
        "application/yaml" | "application/apply-patch+yaml" => parse_yaml(body),
        "application/vnd.kubernetes.protobuf" => super::protobuf::decode(body).and_then(shallow),
        _ => return Err(unsupported_media(&OBJECT_MEDIA)),
    };
    let error = match parsed {
        Ok(Value::Null) => return Ok(serde_json::json!({})),
        Ok(Value::Object(fields)) => {
            let text = |key: &str| match fields.get(key) {
                None | Some(Value::Null) => Ok(""),
                Some(Value::String(text)) => Ok(text.as_str()),
                Some(other) => Err(unversioned(format!(
                    "json: cannot unmarshal {} into Go struct field .{key} of type string",
                    said(other)
                ))),
            };
            match text("apiVersion").and_then(|version| text("kind").map(|_| version)) {
                Ok(version) if version.matches('/').count() > 1 => {
                    format!("unexpected GroupVersion string: {version}")
                }
                Ok(_) => return Ok(Value::Object(fields)),
                Err(error) => error,
            }
        }
        Ok(other) => unversioned(format!("json: cannot unmarshal {} into Go value of type {TYPE_META}", said(&other))),
        Err(error) => error,
    };
    let message =
        format!("the object provided is unrecognized (must be of type {kind}): {error} ({})", beginning(body));
    Err(ApiError::bad_request(message))
}

/// A value's type, as errors name it.
pub(crate) fn said(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

const OBJECT_MEDIA: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// 415
pub(crate) fn unsupported_media(accepted: &[&str]) -> ApiError {
    let message = format!(
        "the body of the request was in an unknown format - accepted media types include: {}",
        accepted.join(", ")
    );
    ApiError::new(415, "UnsupportedMediaType", message)
}

/// The first bytes of a body, to tell what it was; in hexadecimal unless it begins as JSON does.
fn beginning(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    let (shown, rest) = body.split_at(body.len().min(SHOWN));
    let more = if rest.is_empty() { "" } else { " ..." };
    match shown.first() {
        None => "<empty>".into(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(shown)),
        Some(_) => shown.iter().map(|byte| format!("{byte:02x}")).chain([more.into()]).collect(),
    }
}

/// Fields that are twice in a JSON body, as in `duplicate field "spec.a"`. Of each, the last one counts.
pub(crate) fn duplicates(content_type: &str, body: &[u8]) -> Vec<String> {
    match content_type {
        "" | "application/json" | "*/*" => super::duplicates::find(body),
        "application/yaml" => super::yaml_duplicates::find(body),
        _ => Vec::new(),
    }
}

/// YAML is a superset of JSON, but the JSON parser is faster and kubectl sends JSON under this type as well.
pub(crate) fn parse_yaml(body: &[u8]) -> Result<Value, String> {
    if let Ok(value) = serde_json::from_slice(body) {
        return shallow(value);
    }
    let text = std::str::from_utf8(body).map_err(|e| e.to_string())?;
    // Its budget bounds depth, aliases and what they expand to. Of a key that is there twice, the last one counts.
    let options = serde_saphyr::options! { duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins };
    serde_saphyr::from_str_with_options(text, options).map_err(|e| e.to_string()).and_then(shallow)
}

/// The value, unless it nests deeper than [`DEPTH_LIMIT`].
pub(crate) fn shallow(value: Value) -> Result<Value, String> {
    match depth_within(&value, DEPTH_LIMIT) {
        true => Ok(value),
        false => Err("exceeded max depth".into()),
    }
}

/// Whether a value has at most `limit` levels.
pub(crate) fn depth_within(value: &Value, limit: usize) -> bool {
    match value {
        Value::Array(items) => limit > 0 && items.iter().all(|item| depth_within(item, limit - 1)),
        Value::Object(fields) => limit > 0 && fields.values().all(|field| depth_within(field, limit - 1)),
        _ => true,
    }
}

/// What a client wants an answer to look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Form {
    Object,
    Table,
    /// Metadata alone, of one object or a list.
    Partial,
}

/// A media range of an `Accept` header with its parameters.
pub(crate) fn accepted(headers: &HeaderMap) -> Vec<(String, Vec<(String, String)>)> {
    let all = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect::<Vec<_>>().join(",");
    let range = |range: &str| {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next()?.to_ascii_lowercase();
        let parameters = parts.filter_map(|p| p.split_once('=')).map(|(k, v)| (k.trim().into(), v.trim().into()));
        Some((media, parameters.collect()))
    };
    all.split(',').filter(|r| !r.trim().is_empty()).filter_map(range).collect()
}

/// The media types that answers come in.
const OFFERED: [&str; 3] = OBJECT_MEDIA;

/// What a client and this server agree on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Agreed {
    pub(crate) form: Form,
    pub(crate) yaml: bool,
    /// Tables and partial objects are asked for in this old version.
    pub(crate) beta: bool,
    /// Asked for as one object (`Some(false)`) or as a list.
    pub(crate) list: Option<bool>,
}

/// Picks the form that the client likes best of those that we can give; 406 when there is none.
pub(crate) fn agree(headers: &HeaderMap) -> Result<Agreed> {
    let plain = Agreed { form: Form::Object, yaml: false, beta: false, list: None };
    let mut ranges = accepted(headers);
    let quality = |parameters: &[(String, String)]| {
        let q = parameters.iter().find(|(k, _)| k == "q").and_then(|(_, v)| v.parse::<f32>().ok());
        // Thousandths, as three digits are all there may be.
        (q.unwrap_or(1.0) * 1000.0) as i32
    };
    ranges.sort_by_key(|(_, parameters)| -quality(parameters));
    if ranges.is_empty() {
        return Ok(plain);
    }
    let mut known = false;
    for (media, parameters) in &ranges {
        let yaml = match media.as_str() {
            "application/json" | "*/*" => false,
            "application/yaml" => true,
            "application/vnd.kubernetes.protobuf" => {
                known = true;
                continue;
            }
            _ => continue,
        };
        known = true;
        let parameter = |name: &str| parameters.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
        let form = match parameter("as") {
            None => return Ok(Agreed { yaml, ..plain }),
            Some(_) if parameter("g").is_some_and(|g| g != "meta.k8s.io") => continue,
            Some(_) if !matches!(parameter("v"), Some("v1" | "v1beta1")) => continue,
            Some("Table") => (Form::Table, None),
            Some("PartialObjectMetadata") => (Form::Partial, Some(false)),
            Some("PartialObjectMetadataList") => (Form::Partial, Some(true)),
            Some(_) => continue,
        };
        return Ok(Agreed { form: form.0, yaml, beta: parameter("v") == Some("v1beta1"), list: form.1 });
    }
    match known {
        true => Err(not_acceptable(&OFFERED)),
        // The router in front of the handlers has a sentence of its own.
        false => {
            let offered = OFFERED.join(", ");
            let message = format!("406: Not Acceptable\n\nAvailable representations: {offered}");
            let mut error = ApiError::new(406, "NotAcceptable", message);
            error.details = serde_json::json!({});
            Err(error)
        }
    }
}

/// Whether answers to these headers are YAML.
pub(crate) fn wants_yaml(headers: &HeaderMap) -> bool {
    let named = |value: &HeaderValue| value.to_str().is_ok_and(|text| text.contains("yaml"));
    headers.get_all(ACCEPT).iter().any(named) && agree(headers).is_ok_and(|agreed| agreed.yaml)
}

/// Turns a JSON answer into YAML.
pub(crate) async fn into_yaml(answer: Answer) -> Answer {
    if answer.headers().get(CONTENT_TYPE).is_none_or(|media| media != "application/json") {
        return answer;
    }
    let (mut head, body) = answer.into_parts();
    let read = body.collect().await.map(http_body_util::Collected::to_bytes);
    let Some(value) = read.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) else {
        return failure(&ApiError::internal("the answer cannot be written as YAML"));
    };
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/yaml"));
    head.headers.remove(http::header::CONTENT_LENGTH);
    Response::from_parts(head, full(super::yaml::write(&value)))
}

pub(crate) fn not_acceptable(offered: &[&str]) -> ApiError {
    let message = format!("only the following media types are accepted: {}", offered.join(", "));
    ApiError::new(406, "NotAcceptable", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(accept: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        headers
    }

    #[test]
    fn the_first_acceptable_form_is_given() {
        for (accept, wanted) in [
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Some(Form::Table)),
            ("application/vnd.kubernetes.protobuf,application/json", Some(Form::Object)),
            ("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", Some(Form::Partial)),
            ("*/*", Some(Form::Object)),
            ("application/*", None),
            ("application/yaml;as=Table;v=v1;g=meta.k8s.io", Some(Form::Table)),
            ("application/json;as=Table;v=v2;g=meta.k8s.io", None),
            ("application/vnd.kubernetes.protobuf", None),
        ] {
            assert_eq!(agree(&headers(accept)).ok().map(|agreed| agreed.form), wanted, "{accept}");
        }
    }

    #[test]
    fn the_better_liked_format_wins() {
        for (accept, yaml) in [
            ("application/json;q=0.5,application/yaml", true),
            ("application/yaml;q=0.5,application/json", false),
            ("application/json,application/yaml", false),
            ("application/yaml", true),
        ] {
            assert_eq!(wants_yaml(&headers(accept)), yaml, "{accept}");
        }
    }

    #[test]
    fn bodies_that_are_no_objects_are_bad_requests() {
        assert_eq!(parse("application/json", b"{not json").unwrap_err().code, 400);
        assert_eq!(parse("application/json", b"[1]").unwrap_err().code, 400);
        assert_eq!(parse("text/plain", b"{}").unwrap_err().code, 415);
        assert_eq!(parse("application/yaml", b"a: 1\n").unwrap()["a"], 1);
    }

    #[test]
    fn nesting_is_bounded_in_every_format() {
        let nested = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
        assert!(parse("application/json", nested(DEPTH_LIMIT).as_bytes()).is_ok());
        for levels in [DEPTH_LIMIT + 1, 1000, 100_000] {
            for media in ["application/json", "application/yaml"] {
                assert_eq!(parse(media, nested(levels).as_bytes()).unwrap_err().code, 400, "{media}, {levels} levels");
            }
        }
    }

    #[test]
    fn the_beginning_of_a_body_tells_what_it_was() {
        for (body, shown) in [(&b""[..], "<empty>"), (b"{\"a\"", "{\"a\""), (b"\x01a", "0161")] {
            assert_eq!(beginning(body), shown);
        }
        assert!(beginning(&[b'{'; 31]).ends_with("{ ..."));
    }
}
