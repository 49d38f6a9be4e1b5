//! Finding and pulling images.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use futures::StreamExt as _;
use http::{HeaderMap, Method};
use serde::Deserialize;

use super::client::{Client, Failed, secret_header};
use super::found::FoundImage;
use super::names::encode;
use crate::provider::runtime::Image;
use crate::provider::{ProviderError, PullCredentials, ResolvedPod, Result};

/// How long an engine may take to begin a pull, and then to say something new about it.
const BEGIN: Duration = Duration::from_secs(300);
const PROGRESS: Duration = Duration::from_secs(600);

/// One line of a pull. Docker has its errors in `errorDetail` as well, Podman in `error` alone.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    error: Option<String>,
    #[serde(rename = "errorDetail")]
    detail: Option<Detail>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Detail {
    message: String,
}

impl Line {
    fn refusal(self) -> Option<String> {
        self.detail.map(|d| d.message).filter(|m| !m.is_empty()).or(self.error).filter(|e| !e.is_empty())
    }
}

/// What an engine has of an image.
pub(super) async fn find(client: &Client, image: &str) -> Result<Option<FoundImage>> {
    match client.get::<FoundImage>(&format!("/images/{}/json", encode(image))).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(Failed::Answer(400, message)) => {
            Err(ProviderError::Rejected { reason: "InvalidImageName".into(), message })
        }
        Err(error) => Err(error.asking("looking for an image")),
    }
}

/// As statuses show it.
pub(super) fn describe(found: FoundImage) -> Image {
    Image { id: found.repo_digests.into_iter().next().unwrap_or(found.id), size: found.size }
}

/// Pulls an image with each of the pod's credentials that fit, and without any when there are none.
pub(super) async fn pull(client: &Client, image: &str, pod: &ResolvedPod) -> Result<FoundImage> {
    let credentials = pod.credentials_for(image);
    let tries: Vec<_> = match credentials.is_empty() {
        true => vec![None],
        false => credentials.into_iter().map(Some).collect(),
    };
    let mut last = None;
    for credentials in tries {
        match pull_once(client, image, credentials).await {
            Ok(()) => {
                last = None;
                break;
            }
            Err(error) => last = Some(error),
        }
    }
    if let Some(error) = last {
        return Err(error.doing("ErrImagePull"));
    }
    let missing = || ProviderError::Rejected {
        reason: "ErrImagePull".into(),
        message: "the engine pulled it and does not have it".into(),
    };
    find(client, image).await?.ok_or_else(missing)
}

async fn pull_once(client: &Client, image: &str, credentials: Option<&PullCredentials>) -> Result<(), Failed> {
    let (name, tag) = split(image);
    let path = format!("/images/create?fromImage={}&tag={}", encode(name), encode(tag));
    let headers = credentials.map(header).transpose()?.unwrap_or_default();
    let lines = client.lines(Method::POST, &path, headers, BEGIN).await?;
    let mut lines = std::pin::pin!(lines);
    loop {
        match tokio::time::timeout(PROGRESS, lines.next()).await {
            Ok(Some(Ok(line))) => {
                let line: Line = serde_json::from_str(&line).unwrap_or_default();
                if let Some(message) = line.refusal() {
                    return Err(Failed::Answer(500, message));
                }
            }
            Ok(Some(Err(error))) => return Err(Failed::Silence(format!("pulling an image: {error}"))),
            Ok(None) => return Ok(()),
            Err(_) => return Err(Failed::Silence("pulling an image: no progress".into())),
        }
    }
}

/// The credentials as engines want them.
fn header(credentials: &PullCredentials) -> Result<HeaderMap, Failed> {
    let json = serde_json::json!({
        "username": credentials.username,
        "password": credentials.password,
        "serveraddress": credentials.registry,
        "identitytoken": credentials.identity_token.as_deref().unwrap_or_default(),
        "registrytoken": credentials.registry_token.as_deref().unwrap_or_default(),
    });
    secret_header("x-registry-auth", &URL_SAFE.encode(json.to_string()))
}

/// The name, and the tag or digest.
fn split(image: &str) -> (&str, &str) {
    if let Some((name, digest)) = image.split_once('@') {
        // A tag beside a digest says nothing.
        return (split(name).0, digest);
    }
    let from = image.rfind('/').map_or(0, |at| at + 1);
    image[from..].rfind(':').map_or((image, "latest"), |at| (&image[..from + at], &image[from + at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_taken_apart() {
        for (image, want) in [
            ("busybox", ("busybox", "latest")),
            ("busybox:1.36", ("busybox", "1.36")),
            ("localhost:5000/a/b", ("localhost:5000/a/b", "latest")),
            ("localhost:5000/a/b:2", ("localhost:5000/a/b", "2")),
            ("a/b@sha256:01", ("a/b", "sha256:01")),
            ("a/b:2@sha256:01", ("a/b", "sha256:01")),
        ] {
            assert_eq!(split(image), want, "{image}");
        }
    }

    #[test]
    fn the_errors_of_both_engines_are_read() {
        for (line, want) in [
            (r#"{"status":"Pulling","progressDetail":{}}"#, None),
            (r#"{"error":"denied","errorDetail":{"message":"access denied"}}"#, Some("access denied")),
            (r#"{"status":"","progress":null,"error":"no such host"}"#, Some("no such host")),
        ] {
            let line: Line = serde_json::from_str(line).unwrap();
            assert_eq!(line.refusal().as_deref(), want);
        }
    }

    #[test]
    fn a_password_is_in_no_debug_output() {
        let credentials = PullCredentials {
            registry: "quay.io".into(),
            username: "u".into(),
            password: "hidden".into(),
            identity_token: None,
            registry_token: None,
        };
        let headers = header(&credentials).unwrap();
        assert_eq!(format!("{headers:?}"), r#"{"x-registry-auth": Sensitive}"#);
    }
}
