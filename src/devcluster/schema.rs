//! Schemas of kinds.
use crate::status::FieldError;
use serde_json::Value;

/// A kind's schema.
#[derive(Clone, Debug)]
pub struct Schema;

/// The schema of a built-in definition.
pub fn builtin(_definition: &str) -> Option<Schema> {
    Some(Schema)
}

impl Schema {
    pub(crate) fn from_crd(_schema: &Value) -> Result<Self, Vec<FieldError>> {
        Ok(Self)
    }
    pub(crate) fn unknown_fields(&self, _value: &Value) -> Vec<String> {
        Vec::new()
    }
    pub(crate) fn check_types(&self, _value: &Value) -> Result<(), String> {
        Ok(())
    }
    pub(crate) fn prune(&self, _value: &mut Value) {}
    pub(crate) fn default(&self, _value: &mut Value) {}
    pub(crate) fn validate(&self, _new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        Vec::new()
    }
}
