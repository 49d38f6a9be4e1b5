//! What the operator does can be followed in OpenTelemetry.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::support::{Bed, Process, eventually, vnode_binary};

/// A collector that keeps what it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().expect("kept").push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Serves until the runtime that is returned is dropped.
    fn start(&self) -> (tokio::runtime::Runtime, SocketAddr) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(self.clone()));
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (runtime, address)
    }

    /// Every span as its service, its name and its attributes.
    fn spans(&self) -> Vec<String> {
        let kept = self.0.lock().expect("kept");
        let resources = kept.iter().flat_map(|r| &r.resource_spans);
        let spans =
            resources.flat_map(|r| r.scope_spans.iter().flat_map(|s| &s.spans).map(|s| (r.resource.as_ref(), s)));
        spans
            .map(|(resource, span)| format!("{resource:?} {:?} {:?} {:?}", span.name, span.attributes, span.events))
            .collect()
    }
}

#[test]
fn a_collector_is_told_how_long_a_pod_took_and_nothing_that_is_secret() {
    let collector = Collector::default();
    let (_serving, address) = collector.start();
    let mut bed = Bed::cluster_only();
    bed.variables =
        vec![("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}")), ("OTEL_BSP_SCHEDULE_DELAY", "200".into())];
    bed.start_operator_with(&["--log-level", "debug"]);
    let (node, name) = (bed.name("traced"), bed.name("followed"));
    bed.kubectl(&format!("create secret generic {name} --from-literal=key=hush-hush"));
    bed.ready_node(&node, "");
    bed.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeSelector: {{kubernetes.io/hostname: {node}}}\n  \
         tolerations: [{{operator: Exists}}]\n  containers:\n  - name: main\n    image: example/app:1\n    \
         env: [{{name: KEY, valueFrom: {{secretKeyRef: {{name: {name}, key: key}}}}}}]\n"
    ));
    bed.wait_phase(&name, "Running");
    let uid = bed.get(&format!("pod/{name}")).expect("it")["metadata"]["uid"].as_str().expect("a uid").to_owned();
    eventually("its span arrives", || {
        let words = ["\"vnode\"", "reconcile pod", &node, &name, &uid];
        collector.spans().iter().find(|span| words.iter().all(|word| span.contains(word))).cloned()
    });
    eventually("the node's span arrives", || {
        collector.spans().into_iter().find(|span| span.contains("reconcile virtual node") && span.contains(&node))
    });
    // What is on its way is sent before the end.
    assert_eq!(bed.operator.as_mut().and_then(Process::stop), Some(0));
    assert!(!collector.spans().iter().any(|span| span.contains("hush-hush")));
}

#[test]
fn a_protocol_that_is_not_spoken_is_refused_by_name() {
    let out = Command::new(vnode_binary())
        .args(["operator", "--kubeconfig", "/nowhere"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        .output()
        .expect("vnode");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("OTEL_EXPORTER_OTLP_PROTOCOL"), "{said}");
}
