//! The OpenAPI v2 document as protobuf, the only form that kubectl asks for. Messages: gnostic's `openapi.v2`, as far
//! as the documents of this server go.

use prost::Message;
use serde_json::Value;

/// The media type that clients accept, and the one they are answered with.
pub(crate) const ACCEPTED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
pub(crate) const ANSWERED: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

#[derive(Clone, PartialEq, Message)]
struct Document {
    #[prost(string, tag = "1")]
    swagger: String,
    #[prost(message, optional, tag = "2")]
    info: Option<Info>,
    #[prost(message, optional, tag = "8")]
    paths: Option<Paths>,
    #[prost(message, optional, tag = "9")]
    definitions: Option<NamedSchemas>,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    title: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Paths {
    #[prost(message, repeated, tag = "2")]
    path: Vec<NamedPathItem>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedPathItem {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<PathItem>,
}

#[derive(Clone, PartialEq, Message)]
struct PathItem {
    #[prost(message, optional, tag = "2")]
    get: Option<Operation>,
    #[prost(message, optional, tag = "3")]
    put: Option<Operation>,
    #[prost(message, optional, tag = "4")]
    post: Option<Operation>,
    #[prost(message, optional, tag = "5")]
    delete: Option<Operation>,
    #[prost(message, optional, tag = "8")]
    patch: Option<Operation>,
}

#[derive(Clone, PartialEq, Message)]
struct Operation {
    #[prost(message, repeated, tag = "8")]
    parameters: Vec<ParametersItem>,
    #[prost(message, optional, tag = "9")]
    responses: Option<Responses>,
    #[prost(message, repeated, tag = "13")]
    vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct ParametersItem {
    #[prost(message, optional, tag = "1")]
    parameter: Option<Parameter>,
}

#[derive(Clone, PartialEq, Message)]
struct Parameter {
    #[prost(message, optional, tag = "2")]
    non_body: Option<NonBodyParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct NonBodyParameter {
    #[prost(message, optional, tag = "3")]
    query: Option<QueryParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct QueryParameter {
    #[prost(string, tag = "2")]
    place: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(string, tag = "6")]
    kind: String,
    #[prost(bool, tag = "20")]
    unique_items: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Responses {
    #[prost(message, repeated, tag = "1")]
    response_code: Vec<NamedResponse>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedResponse {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<ResponseValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ResponseValue {
    #[prost(message, optional, tag = "1")]
    response: Option<Response>,
}

#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(string, tag = "1")]
    description: String,
    #[prost(message, optional, tag = "2")]
    schema: Option<SchemaItem>,
}

#[derive(Clone, PartialEq, Message)]
struct SchemaItem {
    #[prost(message, optional, tag = "1")]
    schema: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedSchemas {
    #[prost(message, repeated, tag = "1")]
    all: Vec<NamedSchema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedSchema {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct Schema {
    #[prost(string, tag = "1")]
    reference: String,
    #[prost(string, tag = "2")]
    format: String,
    #[prost(string, tag = "4")]
    description: String,
    #[prost(message, optional, tag = "5")]
    default: Option<Any>,
    #[prost(double, tag = "7")]
    maximum: f64,
    #[prost(double, tag = "9")]
    minimum: f64,
    #[prost(string, tag = "13")]
    pattern: String,
    #[prost(string, repeated, tag = "19")]
    required: Vec<String>,
    #[prost(message, repeated, tag = "20")]
    values: Vec<Any>,
    #[prost(message, optional, tag = "21")]
    additional_properties: Option<AdditionalProperties>,
    #[prost(message, optional, tag = "22")]
    kind: Option<Strings>,
    #[prost(message, optional, tag = "23")]
    items: Option<Schemas>,
    #[prost(message, optional, tag = "25")]
    properties: Option<NamedSchemas>,
    #[prost(message, repeated, tag = "31")]
    vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct AdditionalProperties {
    #[prost(message, optional, boxed, tag = "1")]
    schema: Option<Box<Schema>>,
    #[prost(bool, optional, tag = "2")]
    boolean: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct Strings {
    #[prost(string, repeated, tag = "1")]
    value: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Schemas {
    #[prost(message, repeated, tag = "1")]
    schema: Vec<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedAny {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "2")]
    yaml: String,
}

/// Encodes a document that [`v2`](super::v2) made.
pub(crate) fn encode(document: &Value) -> Vec<u8> {
    let info = Info { title: text(&document["info"]["title"]), version: text(&document["info"]["version"]) };
    let path = |(name, item): (&String, &Value)| NamedPathItem { name: name.clone(), value: Some(path_item(item)) };
    Document {
        swagger: text(&document["swagger"]),
        info: Some(info),
        paths: Some(Paths { path: fields(&document["paths"]).map(path).collect() }),
        definitions: Some(named_schemas(&document["definitions"])),
    }
    .encode_to_vec()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn path_item(item: &Value) -> PathItem {
    let at = |verb: &str| item.get(verb).map(operation);
    PathItem { get: at("get"), put: at("put"), post: at("post"), delete: at("delete"), patch: at("patch") }
}

fn operation(value: &Value) -> Operation {
    let parameter = |p: &Value| {
        let query = QueryParameter {
            place: text(&p["in"]),
            name: text(&p["name"]),
            kind: text(&p["type"]),
            unique_items: p["uniqueItems"].as_bool().unwrap_or_default(),
        };
        let parameter = Parameter { non_body: Some(NonBodyParameter { query: Some(query) }) };
        ParametersItem { parameter: Some(parameter) }
    };
    let response = |(name, r): (&String, &Value)| {
        let schema = r.get("schema").map(|s| SchemaItem { schema: Some(schema(s)) });
        let response = Response { description: text(&r["description"]), schema };
        NamedResponse { name: name.clone(), value: Some(ResponseValue { response: Some(response) }) }
    };
    Operation {
        parameters: list(&value["parameters"]).map(parameter).collect(),
        responses: Some(Responses { response_code: fields(&value["responses"]).map(response).collect() }),
        vendor_extension: extensions(value),
    }
}

fn named_schemas(value: &Value) -> NamedSchemas {
    let one = |(name, s): (&String, &Value)| NamedSchema { name: name.clone(), value: Some(schema(s)) };
    NamedSchemas { all: fields(value).map(one).collect() }
}

fn schema(value: &Value) -> Schema {
    let kinds: Vec<_> = match &value["type"] {
        Value::String(one) => vec![one.clone()],
        many => list(many).map(text).collect(),
    };
    let additional = match value.get("additionalProperties") {
        None => None,
        Some(Value::Bool(any)) => Some(AdditionalProperties { schema: None, boolean: Some(*any) }),
        Some(of) => Some(AdditionalProperties { schema: Some(Box::new(schema(of))), boolean: None }),
    };
    Schema {
        reference: text(&value["$ref"]),
        format: text(&value["format"]),
        description: text(&value["description"]),
        default: value.get("default").map(any),
        maximum: value["maximum"].as_f64().unwrap_or_default(),
        minimum: value["minimum"].as_f64().unwrap_or_default(),
        pattern: text(&value["pattern"]),
        required: list(&value["required"]).map(text).collect(),
        values: list(&value["enum"]).map(any).collect(),
        additional_properties: additional,
        kind: (!kinds.is_empty()).then_some(Strings { value: kinds }),
        items: value.get("items").map(|items| Schemas { schema: vec![schema(items)] }),
        properties: value.get("properties").map(named_schemas),
        vendor_extension: extensions(value),
    }
}

fn extensions(value: &Value) -> Vec<NamedAny> {
    let ours = fields(value).filter(|(name, _)| name.starts_with("x-"));
    ours.map(|(name, value)| NamedAny { name: name.clone(), value: Some(any(value)) }).collect()
}

/// Every JSON text is a YAML text.
fn any(value: &Value) -> Any {
    Any { yaml: value.to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn definitions_and_what_patches_take_survive_the_encoding() {
        let document = json!({"swagger": "2.0", "info": {"title": "T", "version": "v1"},
            "paths": {"/api/v1/pods/{name}": {"patch": {"parameters": [{"name": "fieldValidation", "in": "query", "type": "string"}],
                "x-kubernetes-group-version-kind": {"kind": "Pod"}}}},
            "definitions": {"Pod": {"type": "object", "required": ["spec"], "properties": {
                "spec": {"$ref": "#/definitions/Spec"}, "labels": {"additionalProperties": {"type": "string"}},
                "ports": {"type": "array", "items": {"type": "integer"}, "x-kubernetes-patch-merge-key": "port"}}}}});
        let read = Document::decode(&*encode(&document)).unwrap();
        let patch = read.paths.unwrap().path.remove(0).value.unwrap().patch.unwrap();
        let query = patch.parameters[0].parameter.clone().unwrap().non_body.unwrap().query.unwrap();
        assert_eq!((query.name.as_str(), query.place.as_str()), ("fieldValidation", "query"));
        assert_eq!(patch.vendor_extension[0].value.as_ref().unwrap().yaml, r#"{"kind":"Pod"}"#);
        let pod = read.definitions.unwrap().all.remove(0);
        assert_eq!(pod.name, "Pod");
        let pod = pod.value.unwrap();
        assert_eq!(pod.required, ["spec"]);
        let properties = pod.properties.unwrap().all;
        let of = |name: &str| properties.iter().find(|p| p.name == name).unwrap().value.clone().unwrap();
        assert_eq!(of("spec").reference, "#/definitions/Spec");
        assert_eq!(of("labels").additional_properties.unwrap().schema.unwrap().kind.unwrap().value, ["string"]);
        assert_eq!(of("ports").vendor_extension[0].value.as_ref().unwrap().yaml, r#""port""#);
    }
}
