//! Pure: from `--provider` and its file to `spec.provider`, and the forms of values that Go programs take.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{JSONSchemaProps, JSONSchemaPropsOrBool};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Map, Value, json};

use super::mock_file;
use crate::api::ProviderSpec;
use crate::provider::registry;

/// What the command line says of the provider.
pub(in crate::cli) struct Asked<'a> {
    /// `--provider`
    pub kind: &'a str,
    /// `--nodename`
    pub node: &'a str,
    /// The text of `--provider-config`.
    pub file: Option<&'a str>,
    /// `WEB_ENDPOINT_URL`
    pub web: Option<&'a str>,
}

/// What becomes of it.
#[derive(Debug)]
pub(in crate::cli) struct Found {
    pub provider: ProviderSpec,
    pub capacity: BTreeMap<String, Quantity>,
    pub provider_id: Option<String>,
}

impl Asked<'_> {
    pub(in crate::cli) fn read(&self) -> Result<Found> {
        let mut found =
            Found { provider: spec(json!({"type": "mock"}))?, capacity: BTreeMap::new(), provider_id: None };
        let value: Option<Value> = match self.file {
            Some(text) if !text.trim().is_empty() => {
                Some(serde_saphyr::from_str(text).context("it is neither YAML nor JSON")?)
            }
            _ => None,
        };
        if self.kind == "mock"
            && let Some(file) = mock_file::read(value.as_ref(), self.node)?
        {
            found.capacity = file.capacity;
            found.provider_id = file.provider_id;
            found.provider = spec(json!({"type": "mock", "mock": {}}))?;
            return Ok(found);
        }
        let mut whole = match value {
            // All of spec.provider.
            Some(Value::Object(map)) if map.contains_key("type") => {
                if map["type"] != self.kind {
                    bail!("type: {} is not what --provider says: {}", map["type"], self.kind);
                }
                map
            }
            Some(Value::Object(map)) => Map::from_iter([(self.kind.to_owned(), Value::Object(map))]),
            None => Map::from_iter([(self.kind.to_owned(), json!({}))]),
            Some(_) => bail!("it is not a map of fields"),
        };
        whole.insert("type".into(), self.kind.into());
        if let (Some(url), "web", Some(web)) =
            (self.web, self.kind, whole.get_mut("web").and_then(Value::as_object_mut))
        {
            web.entry("url").or_insert_with(|| url.into());
        }
        let whole = Value::Object(whole);
        refuse_unknown(&whole)?;
        found.provider = spec(whole)?;
        Ok(found)
    }
}

fn spec(value: Value) -> Result<ProviderSpec> {
    serde_path_to_error::deserialize(&value).map_err(|error| {
        let path = error.path().to_string();
        anyhow::anyhow!("{path}: {}", error.into_inner())
    })
}

/// The API server would drop a field that nobody knows; here it is an error, since there is nobody to look at.
fn refuse_unknown(provider: &Value) -> Result<()> {
    let crds = crate::api::crds_with(&registry::global().members());
    let schemas = crds.first().into_iter().flat_map(|crd| &crd.spec.versions).filter_map(|v| v.schema.as_ref());
    for schema in schemas.filter_map(|s| s.open_api_v3_schema.as_ref()) {
        let Some(known) = schema.properties.as_ref().and_then(|p| p.get("spec")?.properties.as_ref()?.get("provider"))
        else {
            continue;
        };
        // A type that the schema does not have is the registry's to refuse.
        for (name, value) in provider.as_object().into_iter().flatten() {
            if let Some(schema) = known.properties.as_ref().and_then(|p| p.get(name)) {
                check(value, schema, name)?;
            }
        }
    }
    Ok(())
}

fn check(value: &Value, schema: &JSONSchemaProps, path: &str) -> Result<()> {
    if schema.x_kubernetes_preserve_unknown_fields == Some(true) {
        return Ok(());
    }
    let items = || match &schema.items {
        Some(k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaPropsOrArray::Schema(s)) => {
            Some(&**s)
        }
        _ => None,
    };
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let here = format!("{path}.{name}");
                let known = schema.properties.as_ref().and_then(|p| p.get(name));
                match (known, &schema.additional_properties) {
                    (Some(schema), _) => check(value, schema, &here)?,
                    (None, Some(JSONSchemaPropsOrBool::Schema(schema))) => check(value, schema, &here)?,
                    (None, Some(JSONSchemaPropsOrBool::Bool(true))) => {}
                    (None, _) => {
                        let known: Vec<_> =
                            schema.properties.iter().flat_map(|p| p.keys().map(String::as_str)).collect();
                        bail!("{here}: there is no such field; there are: {}", known.join(", "));
                    }
                }
            }
        }
        Value::Array(all) => {
            for (number, value) in all.iter().enumerate() {
                if let Some(schema) = items() {
                    check(value, schema, &format!("{path}[{number}]"))?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// `Linux` and `Windows` as well.
pub(super) fn operating_system(text: &str) -> Result<String, String> {
    match text.to_ascii_lowercase().as_str() {
        found @ ("linux" | "windows") => Ok(found.to_owned()),
        _ => Err(format!("{text:?} is neither linux or windows")),
    }
}

/// `:10255` as well, which is all addresses.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let whole = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
    whole.parse().map_err(|_| format!("{text:?} is not an address with a port such as 127.0.0.1:10255"))
}

/// A time as Go writes it: `30s`, `1m30s`, `500ms`; plain numbers are seconds.
pub(in crate::cli) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time such as 30s or 1m30s");
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let (factor, used) = match tail {
            _ if tail.starts_with("ms") => (0.001, 2),
            _ if tail.starts_with('s') => (1.0, 1),
            _ if tail.starts_with('m') => (60.0, 1),
            _ if tail.starts_with('h') => (3600.0, 1),
            "" => (1.0, 0),
            _ => return Err(wrong()),
        };
        total += Duration::try_from_secs_f64(number * factor).map_err(|_| wrong())?;
        rest = &tail[used..];
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked<'a>(kind: &'a str, file: Option<&'a str>) -> Result<Found> {
        Asked { kind, node: "vk", file, web: Some("http://127.0.0.1:8080") }.read()
    }

    #[test]
    fn a_file_is_the_member_or_all_of_the_union() {
        for file in ["startLatencyMs: 5", "type: mock\nmock: {startLatencyMs: 5}", r#"{"startLatencyMs": 5}"#] {
            let found = asked("mock", Some(file)).unwrap();
            assert_eq!(found.provider.mock.unwrap().start_latency_ms, Some(5), "{file}");
        }
        assert!(asked("process", None).unwrap().provider.process.is_some());
    }

    #[test]
    fn the_endpoint_of_the_web_provider_may_come_from_the_environment() {
        let spec = serde_json::to_value(asked("web", None).unwrap().provider).unwrap();
        assert_eq!(spec["web"]["url"], "http://127.0.0.1:8080");
        let spec = serde_json::to_value(asked("web", Some("url: http://other")).unwrap().provider).unwrap();
        assert_eq!(spec["web"]["url"], "http://other");
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_with_the_field() {
        for (kind, file, says) in [
            ("mock", "startLatency: 5", "mock.startLatency: there is no such field"),
            ("mock", "startLatencyMs: soon", "startLatencyMs"),
            ("mock", "type: process", "--provider says"),
            ("process", "[1]", "not a map"),
            ("process", "{", "neither YAML nor JSON"),
        ] {
            let error = format!("{:#}", asked(kind, Some(file)).unwrap_err());
            assert!(error.contains(says), "{file}: {error}");
        }
    }

    #[test]
    fn values_are_read_as_go_writes_them() {
        for (text, want) in [("30s", 30_000), ("1m30s", 90_000), ("500ms", 500), ("1h", 3_600_000), ("90", 90_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(want)), "{text}");
        }
        for wrong in ["", "s", "1d", "-1s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(address(":1").unwrap().to_string(), "0.0.0.0:1");
        assert!(address("10255").is_err());
    }
}
