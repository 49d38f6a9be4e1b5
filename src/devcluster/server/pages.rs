//! Continue tokens: where the next page of a list begins, and which state of the resource it shows.

use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Value, json};

use crate::status::{ApiError, Result};
use crate::store::Key;

const VERSION: &str = "meta.k8s.io/v1";

/// A continue token. Its text is that of the API server, whose clients look into it now and then.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Continue {
    /// The revision of the first page; `None` goes on with whatever is there now.
    pub(crate) revision: Option<u64>,
    pub(crate) after: Key,
}

/// As the servers' language decodes it: bits left over at the end are nobody's business.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// What is wrong with a token that is no JSON, in the words that Kubernetes has for its most common case.
fn fault(bytes: &[u8], error: &serde_json::Error) -> String {
    let first = bytes.iter().copied().find(|b| !b.is_ascii_whitespace());
    match first.map(char::from) {
        None => "unexpected end of JSON input".into(),
        Some(c) if !matches!(c, '{' | '[' | '"' | '-' | '0'..='9' | 't' | 'f' | 'n') => {
            let shown = match c {
                c if c.is_ascii_graphic() => c.to_string(),
                c if c.is_ascii() => format!("\\x{:02x}", u32::from(c)),
                c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
                c => c.to_string(),
            };
            format!("invalid character '{shown}' looking for beginning of value")
        }
        Some(_) => error.to_string(),
    }
}

impl Continue {
    /// `namespace` is that of the list, if it is of one.
    pub(crate) fn encode(&self, namespace: Option<&str>) -> String {
        let revision = self.revision.map_or(-1, |revision| i64::try_from(revision).unwrap_or(i64::MAX));
        let place = match namespace {
            None if !self.after.namespace.is_empty() => format!("{}/", self.after.namespace),
            _ => String::new(),
        };
        // The zero byte makes it the first key behind the last one shown.
        let token = json!({"v": VERSION, "rv": revision, "start": format!("{place}{}\0", self.after.name)});
        URL_SAFE_NO_PAD.encode(token.to_string())
    }

    /// Reads a token that a list of the same namespace, or of all, has given out.
    pub(crate) fn decode(token: &str, namespace: Option<&str>) -> Result<Self> {
        let invalid =
            |said: &str| Err(ApiError::bad_request(format!("invalid continue token: continue key is not valid{said}")));
        let bytes = match LENIENT.decode(token) {
            Ok(bytes) => bytes,
            Err(base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _)) => {
                return invalid(&format!(": illegal base64 data at input byte {at}"));
            }
            Err(_) => return invalid(&format!(": illegal base64 data at input byte {}", token.len())),
        };
        let token = match serde_json::from_slice::<Value>(&bytes) {
            Ok(token) if token.is_object() => token,
            Ok(_) => return invalid(": json: a JSON object was expected"),
            Err(error) => return invalid(&format!(": {}", fault(&bytes, &error))),
        };
        let version = token["v"].as_str().unwrap_or_default();
        if version != VERSION {
            return invalid(&format!(": server does not recognize this encoded version {version}"));
        }
        let revision = match token["rv"].as_i64() {
            None | Some(0) => return invalid(": incorrect encoded start resourceVersion (version meta.k8s.io/v1)"),
            Some(revision) => u64::try_from(revision).ok(),
        };
        let start = token["start"].as_str().unwrap_or_default();
        if start.is_empty() {
            return invalid(": encoded start key empty (version meta.k8s.io/v1)");
        }
        let path = start.strip_suffix('\0').unwrap_or(start);
        let path = path.strip_prefix('/').unwrap_or(path);
        let parts: Vec<_> = path.split('/').collect();
        let after = match (parts.as_slice(), namespace) {
            (parts, _) if parts.iter().any(|part| matches!(*part, "" | "." | "..")) => None,
            ([name], namespace) => Some(Key::new(namespace.unwrap_or_default(), name)),
            ([place, name], None) => Some(Key::new(place, name)),
            _ => None,
        };
        match after {
            Some(after) => Ok(Self { revision, after }),
            None => invalid(&format!(": {start}")),
        }
    }
}

/// 410 for a list that cannot go on as it began. `go_on` takes it up again from what is there now.
pub(crate) fn expired(go_on: Option<String>) -> ApiError {
    let Some(token) = go_on else {
        return ApiError::expired("The resourceVersion for the provided list is too old.");
    };
    let mut error = ApiError::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list \
         without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
         results. Continuing with the provided token results in an inconsistent list - objects that were created, \
         modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    );
    error.continue_token = Some(token);
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continue_tokens_survive_the_round_trip() {
        for (key, namespace) in [(Key::new("a", "b"), None), (Key::new("a", "b"), Some("a")), (Key::new("", "b"), None)]
        {
            for revision in [Some(7), None] {
                let token = Continue { revision, after: key.clone() };
                assert_eq!(Continue::decode(&token.encode(namespace), namespace), Ok(token));
            }
        }
    }

    #[test]
    fn garbage_is_refused_with_what_is_wrong_about_it() {
        let encode = |token: Value| URL_SAFE_NO_PAD.encode(token.to_string());
        for (token, says) in [
            ("!!".to_owned(), "illegal base64 data at input byte 0"),
            (URL_SAFE_NO_PAD.encode("not json"), "continue key is not valid: "),
            (encode(json!([])), "a JSON object"),
            (encode(json!({"v": "v9", "rv": 1, "start": "a"})), "does not recognize this encoded version v9"),
            (encode(json!({"v": VERSION, "start": "a"})), "incorrect encoded start resourceVersion"),
            (encode(json!({"v": VERSION, "rv": 1})), "encoded start key empty"),
            (encode(json!({"v": VERSION, "rv": 1, "start": "../../x"})), "../../x"),
            (encode(json!({"v": VERSION, "rv": 1, "start": "a/b/c"})), "a/b/c"),
        ] {
            let error = Continue::decode(&token, None).unwrap_err();
            assert!(error.code == 400 && error.message.contains(says), "{error} does not say {says}");
        }
    }
}
