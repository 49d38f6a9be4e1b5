//! `kubectl vnode certs`

use anyhow::Result;
use clap::Args;
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use kube::ResourceExt as _;
use serde::Serialize;

use super::output::{self, span, table};
use super::peer::{self, Shown};
use super::{Session, fleet};

/// Ports dialled at a time.
const AT_A_TIME: usize = 64;
/// Less than this is worth a colour.
const SOON: i64 = 7 * 86_400;

/// Arguments of `certs`.
#[derive(Debug, Args)]
pub(super) struct CertsArgs {
    /// The nodes. All without them.
    nodes: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    node: String,
    endpoint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<Shown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(super) async fn run(session: &Session, args: &CertsArgs) -> Result<()> {
    let nodes = fleet::virtual_nodes(&session.client, &args.nodes).await?;
    let looks = nodes.into_iter().map(|vn| async move {
        let endpoint = vn.status.as_ref().and_then(|s| s.kubelet.as_ref()).map(|k| k.endpoint.clone());
        let endpoint = endpoint.unwrap_or_default();
        let seen = match endpoint.parse() {
            Ok(address) => peer::certificate(address).await.map_err(|e| e.to_string()),
            Err(_) => Err("the node has no kubelet port yet".to_owned()),
        };
        let (certificate, error) = seen.map_or_else(|e| (None, Some(e)), |c| (Some(c), None));
        Row { node: vn.name_any(), endpoint, certificate, error }
    });
    let rows: Vec<Row> = stream::iter(looks).buffered(AT_A_TIME).collect().await;
    let now = Timestamp::now().as_second();
    output::print(session.format, &rows, |paint| {
        let cells = rows.iter().map(|row| {
            let (left, issuer, names) = match (&row.certificate, &row.error) {
                (Some(cert), _) => {
                    let left = cert.not_after.as_second() - now;
                    let text = if left > 0 { span(left) } else { "expired".into() };
                    let text = if left <= 0 {
                        paint.bad(&text)
                    } else if left < SOON {
                        paint.careful(&text)
                    } else {
                        text
                    };
                    (text, cert.issuer.clone(), cert.names.join(","))
                }
                (None, error) => (paint.careful("<unknown>"), error.clone().unwrap_or_default(), String::new()),
            };
            vec![row.node.clone(), row.endpoint.clone(), left, issuer, names]
        });
        table(&["NODE", "ENDPOINT", "EXPIRES IN", "ISSUER", "NAMES"], &cells.collect::<Vec<_>>())
    })
}
