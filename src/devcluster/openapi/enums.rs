//! The values that fields of the built-in kinds may have, which the API's own schemas leave to their descriptions.

use std::collections::HashMap;
use std::sync::OnceLock;

use serde_json::{Value, json};

type Fields = Vec<(&'static str, Vec<&'static str>)>;

fn table() -> &'static HashMap<&'static str, Fields> {
    static TABLE: OnceLock<HashMap<&'static str, Fields>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table: HashMap<&'static str, Fields> = HashMap::new();
        for line in include_str!("enums.txt").lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.split(' ');
            if let (Some(definition), Some(field)) = (words.next(), words.next()) {
                table.entry(definition).or_default().push((field, words.collect()));
            }
        }
        table
    })
}

/// Says in a definition's schema which values its fields may have.
pub(super) fn add(definition: &str, schema: &mut Value) {
    for (field, values) in table().get(definition).into_iter().flatten() {
        let Some(field) = schema.pointer_mut(&format!("/properties/{field}")) else { continue };
        let field = match field.get("items").is_some() {
            true => &mut field["items"],
            false => field,
        };
        if field.get("$ref").is_none() && field.is_object() {
            field["enum"] = json!(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_with_values_is_in_its_definition() {
        let sources: HashMap<_, _> = crate::schema::sources().collect();
        let mut found = 0;
        for (definition, fields) in table() {
            let Some(source) = sources.get(definition) else { continue };
            let mut schema = (*source).clone();
            add(definition, &mut schema);
            found += fields.iter().filter(|(field, _)| schema["properties"][*field]["enum"].is_array()).count();
        }
        assert!(found > 50, "{found}");
        let mut pod = sources["io.k8s.api.core.v1.PodSpec"].clone();
        add("io.k8s.api.core.v1.PodSpec", &mut pod);
        assert_eq!(pod["properties"]["restartPolicy"]["enum"], json!(["Always", "Never", "OnFailure"]));
    }
}
