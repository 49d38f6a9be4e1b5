//! Spans for an OpenTelemetry collector, when the environment names one.
//!
//! The variables are those of the OpenTelemetry specification ("OpenTelemetry Protocol Exporter" and "Environment
//! Variable Specification"). Spans go out by gRPC.

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{SpanExporter, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tracing::Subscriber;
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::registry::LookupSpan;

/// What says where spans go to; one of them must be there.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// By which protocol; only one is there.
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];

/// Spans on their way.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Sends what is left, for as long as the exporter's deadline allows. Blocks.
    pub fn finish(self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(%error, "the last spans did not reach the OpenTelemetry collector");
        }
    }
}

/// What takes spans, and what is to be finished in the end.
type Taker<S> = (OpenTelemetryLayer<S, SdkTracer>, Traces);

/// What takes spans, if the environment wants them. Must be called inside a runtime, which carries them.
///
/// # Errors
/// A variable that asks for what is not there, in a sentence that names it.
pub(super) fn layer<S>() -> Result<Option<Taker<S>>, String>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let env = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    if !wanted(env)? {
        return Ok(None);
    }
    // Without it, https:// would trust nobody.
    let tls = ClientTlsConfig::new().with_enabled_roots();
    let exporter = SpanExporter::builder().with_tonic().with_tls_config(tls).build();
    let exporter = exporter.map_err(|e| format!("{}: {e}", ENDPOINTS.join(" or ")))?;
    let mut resource = Resource::builder();
    if env("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name("vnode");
    }
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("vnode"));
    Ok(Some((layer, Traces(provider))))
}

/// Whether spans are to be exported.
fn wanted(env: impl Fn(&str) -> Option<String>) -> Result<bool, String> {
    let is = |name, word: &str| env(name).is_some_and(|v| v.eq_ignore_ascii_case(word));
    if !ENDPOINTS.iter().any(|name| env(name).is_some())
        || is("OTEL_SDK_DISABLED", "true")
        || is("OTEL_TRACES_EXPORTER", "none")
    {
        return Ok(false);
    }
    match PROTOCOLS.iter().find_map(|name| Some((name, env(name)?))) {
        Some((name, protocol)) if protocol != "grpc" => {
            Err(format!("{name}: {protocol:?} is not supported; spans go out by grpc"))
        }
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_exported_where_the_environment_asks_for_it() {
        type Case = (&'static [(&'static str, &'static str)], Result<bool, &'static str>);
        let cases: [Case; 6] = [
            (&[], Ok(false)),
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4317")], Ok(true)),
            (
                &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://a:4317"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
                Ok(true),
            ),
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4317"), ("OTEL_SDK_DISABLED", "TRUE")], Ok(false)),
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4317"), ("OTEL_TRACES_EXPORTER", "none")], Ok(false)),
            (
                &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4318"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")],
                Err("OTEL_EXPORTER_OTLP_PROTOCOL"),
            ),
        ];
        for (env, want) in cases {
            let got = wanted(|name| env.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()));
            match (got, want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{env:?}"),
                (Err(got), Err(want)) => assert!(got.starts_with(want), "{got}"),
                (got, want) => panic!("{env:?}: {got:?}, not {want:?}"),
            }
        }
    }
}
