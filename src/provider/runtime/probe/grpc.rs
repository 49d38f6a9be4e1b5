//! `grpc.health.v1.Health/Check`: one request of one string, one answer of one number, so it is written out
//! by hand rather than with a gRPC library.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::{SHOWN, Target};

const SERVING: u64 = 1;
const UNIMPLEMENTED: &str = "12";

/// Succeeds when the service says SERVING.
pub(super) async fn check(target: &Target, port: u16, service: &str) -> Result<(), String> {
    let stream = target.connect(None, port).await?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|e| format!("failed to connect service at port {port}: {e}"))?;
    let work = async move {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://localhost:{port}/grpc.health.v1.Health/Check"))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header(header::USER_AGENT, "kube-probe/1.34")
            .body(Full::new(message(service)))
            .map_err(|e| e.to_string())?;
        let response = sender.send_request(request).await.map_err(|e| format!("health rpc failed: {e}"))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, SHOWN).collect().await.map_err(|e| format!("health rpc failed: {e}"))?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        answer(&head.headers, &trailers, body.to_bytes())
    };
    let (mut work, connection) = (std::pin::pin!(work), std::pin::pin!(connection));
    tokio::select! {
        biased;
        done = &mut work => done,
        _ = connection => work.await,
    }
}

/// `HealthCheckRequest { string service = 1 }` in a gRPC frame.
fn message(service: &str) -> Bytes {
    let mut text = BytesMut::new();
    if !service.is_empty() {
        text.put_u8(0x0a);
        varint(service.len() as u64, &mut text);
        text.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    // A service's name is not four gigabytes long.
    frame.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
    frame.put(text);
    frame.freeze()
}

fn varint(mut n: u64, out: &mut BytesMut) {
    while n >= 0x80 {
        out.put_u8((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.put_u8(n as u8);
}

fn answer(headers: &HeaderMap, trailers: &HeaderMap, mut body: Bytes) -> Result<(), String> {
    let field = |name: &str| trailers.get(name).or_else(|| headers.get(name)).and_then(|v| v.to_str().ok());
    match field("grpc-status") {
        Some("0") => {}
        Some(UNIMPLEMENTED) => {
            return Err("this server does not implement the grpc health protocol (grpc.health.v1.Health)".into());
        }
        Some(code) => {
            let said = field("grpc-message").unwrap_or_default();
            return Err(format!("health rpc failed: code {code}: {said}"));
        }
        None => return Err("health rpc failed: the answer is not gRPC".into()),
    }
    if body.len() < 5 {
        return Err("health rpc failed: the answer is too short".into());
    }
    body.advance(5);
    // `HealthCheckResponse { ServingStatus status = 1 }`; 0 is left out.
    let status = match body.first() {
        Some(0x08) => u64::from(body.get(1).copied().unwrap_or(0)),
        _ => 0,
    };
    let word = match status {
        SERVING => return Ok(()),
        0 => "UNKNOWN",
        2 => "NOT_SERVING",
        _ => "SERVICE_UNKNOWN",
    };
    Err(format!("service unhealthy (responded with {word:?})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(status: &str) -> HeaderMap {
        [(header::HeaderName::from_static("grpc-status"), status.parse().unwrap())].into_iter().collect()
    }

    #[test]
    fn answers_are_read() {
        let frame = |body: &'static [u8]| Bytes::from([&[0, 0, 0, 0, body.len() as u8], body].concat());
        for (trailers, body, ok) in [
            (head("0"), frame(&[8, 1]), true),
            (head("0"), frame(&[8, 2]), false),
            (head("0"), frame(&[]), false),
            (head("0"), Bytes::new(), false),
            (head("12"), Bytes::new(), false),
            (HeaderMap::new(), frame(&[8, 1]), false),
        ] {
            assert_eq!(answer(&HeaderMap::new(), &trailers, body).is_ok(), ok, "{trailers:?}");
        }
        assert!(answer(&head("5"), &HeaderMap::new(), Bytes::new()).unwrap_err().contains("code 5"));
    }

    #[test]
    fn the_service_is_in_the_request() {
        assert_eq!(&message("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&message("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
    }
}
