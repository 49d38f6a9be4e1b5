//! Rules of kinds.
use crate::status::FieldError;
use serde_json::Value;

#[derive(Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) default: fn(&mut Value),
    pub(crate) validate: fn(&Value, Option<&Value>) -> Vec<FieldError>,
}
pub(crate) fn rules(_group: &str, _kind: &str) -> Rules {
    Rules { default: |_| (), validate: |_, _| Vec::new() }
}
