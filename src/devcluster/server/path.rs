//! What a request is about: apiserver's `RequestInfo`.

use http::Method;

/// A request for resources, taken from its path.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Target {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) resource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) subresource: String,
    /// The old form of a watch, as in `/api/v1/watch/namespaces/…`: of one object when it has a name.
    pub(crate) watched: bool,
    /// What follows a `proxy` subresource, without the leading slash.
    pub(crate) rest: String,
}

impl Target {
    /// The resource that a path names; `None` for other paths, discovery among them.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let mut parts = path.strip_prefix('/')?.split('/');
        let group = match parts.next()? {
            "api" => String::new(),
            "apis" => decode(parts.next()?),
            _ => return None,
        };
        let version = decode(parts.next()?);
        let mut parts: Vec<String> = parts.map(decode).collect();
        while parts.last().is_some_and(String::is_empty) && parts.len() > 1 {
            parts.pop();
        }
        let first = parts.first().filter(|p| !p.is_empty())?;
        let mut target = Self { group, version, watched: first == "watch", ..Self::default() };
        let mut at = usize::from(target.watched);
        let part = |at: usize| parts.get(at).cloned().unwrap_or_default();
        if part(at) == "namespaces" && parts.len() > at + 2 && !matches!(&*part(at + 2), "status" | "finalize") {
            target.namespace = part(at + 1);
            at += 2;
        }
        target.resource = part(at);
        target.name = part(at + 1);
        target.subresource = part(at + 2);
        target.rest = parts.get(at + 3..).unwrap_or_default().join("/");
        if path.ends_with('/') && !target.rest.is_empty() {
            target.rest.push('/');
        }
        Some(target)
    }

    /// The verb that RBAC knows for a method.
    pub(crate) fn verb(&self, method: &Method, watch: bool) -> &'static str {
        match *method {
            Method::GET | Method::HEAD if self.watched || self.name.is_empty() && watch => "watch",
            Method::GET | Method::HEAD if self.name.is_empty() => "list",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if self.name.is_empty() => "deletecollection",
            Method::DELETE => "delete",
            _ => "get",
        }
    }
}

/// Undoes percent-encoding; bytes that are no UTF-8 become replacement characters.
pub(crate) fn decode(text: &str) -> String {
    decode_form(text, false)
}

fn decode_form(text: &str, plus_is_space: bool) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes().iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'%' => {
                let hex = |b: Option<&u8>| b.and_then(|b| (*b as char).to_digit(16));
                let rest = bytes.as_slice();
                match (hex(rest.first()), hex(rest.get(1))) {
                    (Some(high), Some(low)) => {
                        out.push((high * 16 + low) as u8);
                        bytes.nth(1);
                    }
                    _ => out.push(byte),
                }
            }
            b'+' if plus_is_space => out.push(b' '),
            _ => out.push(byte),
        }
    }
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// The parameters of a query string.
pub(crate) fn query(text: &str) -> Vec<(String, String)> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode_form(key, true), decode_form(value, true))
    };
    text.split('&').filter(|p| !p.is_empty()).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str) -> Option<[String; 7]> {
        let t = Target::parse(path)?;
        Some([t.group, t.version, t.namespace, t.resource, t.name, t.subresource, t.rest])
    }

    #[test]
    fn paths_name_their_resources() {
        for (path, wanted) in [
            ("/api/v1/pods", Some(["", "v1", "", "pods", "", "", ""])),
            ("/api/v1/namespaces", Some(["", "v1", "", "namespaces", "", "", ""])),
            ("/api/v1/namespaces/a", Some(["", "v1", "", "namespaces", "a", "", ""])),
            ("/api/v1/namespaces/a/status", Some(["", "v1", "", "namespaces", "a", "status", ""])),
            ("/api/v1/namespaces/a/pods/b/log", Some(["", "v1", "a", "pods", "b", "log", ""])),
            ("/apis/apps/v1/namespaces/a/deployments", Some(["apps", "v1", "a", "deployments", "", "", ""])),
            ("/api/v1/nodes/n/proxy/logs/x", Some(["", "v1", "", "nodes", "n", "proxy", "logs/x"])),
            ("/api/v1", None),
            ("/apis/apps", None),
            ("/healthz", None),
        ] {
            assert_eq!(parse(path), wanted.map(|w| w.map(String::from)), "{path}");
        }
    }

    #[test]
    fn encoded_text_is_decoded_and_broken_encoding_is_kept() {
        assert_eq!(
            query("a=b%20c&d=e+f&g"),
            [("a".into(), "b c".into()), ("d".into(), "e f".into()), ("g".into(), String::new())]
        );
        assert_eq!(decode("100%"), "100%");
        assert_eq!(decode("%zz"), "%zz");
    }
}
