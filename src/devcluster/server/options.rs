//! Query parameters: `ListOptions`, `CreateOptions`, `PatchOptions`, `DeleteOptions`.

use serde_json::{Value, json};

use crate::status::{ApiError, FieldError, Result};

/// How unknown fields are treated. apiserver: `fieldValidation`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// The parameters of any request; what does not apply to one is ignored, as the API server does.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    parameters: Vec<(String, String)>,
}

impl Options {
    pub(crate) fn parse(query: Option<&str>) -> Self {
        Self { parameters: super::path::query(query.unwrap_or_default()) }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// Every value of a parameter that may be given several times.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.parameters.iter().filter(move |(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// Absent, `0` and `false` are false; everything else is true.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| !matches!(v, "0" | "false" | "False"))
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>> {
        let Some(text) = self.get(name).filter(|t| !t.is_empty()) else { return Ok(None) };
        let parsed = text.parse::<i64>().map_err(|e| {
            ApiError::bad_request(format!("strconv.ParseInt: parsing {text:?}: {}", number_fault(e.kind())))
        })?;
        Ok(u64::try_from(parsed).ok())
    }

    pub(crate) fn dry_run(&self) -> Result<bool> {
        let mut dry = false;
        for (_, value) in self.parameters.iter().filter(|(k, v)| k == "dryRun" && !v.is_empty()) {
            if value != "All" {
                let error = FieldError::not_supported("dryRun", &json!(value), &["All"]);
                return Err(ApiError::invalid("CreateOptions", "meta.k8s.io", "", &[error]));
            }
            dry = true;
        }
        Ok(dry)
    }

    pub(crate) fn field_validation(&self) -> Result<FieldValidation> {
        match self.get("fieldValidation") {
            Some("Ignore") => Ok(FieldValidation::Ignore),
            // The server's default is Warn.
            None | Some("" | "Warn") => Ok(FieldValidation::Warn),
            Some("Strict") => Ok(FieldValidation::Strict),
            Some(other) => {
                let allowed = ["", "Ignore", "Strict", "Warn"];
                let error = FieldError::not_supported("fieldValidation", &json!(other), &allowed);
                Err(ApiError::invalid("CreateOptions", "meta.k8s.io", "", &[error]))
            }
        }
    }

    /// The field manager: the parameter, or the client's own name as far as its first slash.
    pub(crate) fn manager<'a>(&'a self, user_agent: &'a str) -> &'a str {
        match self.get("fieldManager").filter(|m| !m.is_empty()) {
            Some(manager) => manager,
            None => user_agent.split('/').next().filter(|a| !a.is_empty()).unwrap_or("unknown"),
        }
    }

    pub(crate) fn revision(&self) -> Result<Option<u64>> {
        let Some(text) = self.get("resourceVersion").filter(|t| !t.is_empty()) else { return Ok(None) };
        // A leading plus is fine for Rust alone.
        let parsed = if text.starts_with('+') { "+".parse() } else { text.parse::<u64>() };
        parsed.map(Some).map_err(|error| {
            ApiError::bad_request(format!(
                "invalid resource version: resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing \
                 {text:?}: {}",
                number_fault(error.kind())
            ))
        })
    }

    /// Checks how the parameters of a list or watch go together. apimachinery: `ValidateListOptions`.
    pub(crate) fn check_list(&self) -> Result<()> {
        let forbidden = |field: &str, detail: &str| Some(FieldError::forbidden(field, detail));
        let matched = self.get("resourceVersionMatch").filter(|m| !m.is_empty());
        let version = self.get("resourceVersion").filter(|v| !v.is_empty());
        let known = matches!(matched, None | Some("Exact" | "NotOlderThan"));
        let initial = self.get("sendInitialEvents").is_some();
        let error = if !self.flag("watch") {
            match matched {
                _ if initial => forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"),
                Some(_) if version.is_none() => forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ),
                Some(_) if self.get("continue").is_some_and(|c| !c.is_empty()) => {
                    forbidden("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided")
                }
                Some("Exact") if version == Some("0") => forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ),
                Some(other) if !known => Some(FieldError::not_supported(
                    "resourceVersionMatch",
                    &json!(other),
                    &["Exact", "NotOlderThan", ""],
                )),
                _ => None,
            }
        } else {
            match matched {
                Some(_) if !initial => forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ),
                None if initial => forbidden(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ),
                Some(other) if initial && other != "NotOlderThan" => {
                    Some(FieldError::not_supported("resourceVersionMatch", &json!(other), &["NotOlderThan"]))
                }
                _ => None,
            }
        };
        match error {
            Some(error) => Err(ApiError::invalid("ListOptions", "meta.k8s.io", "", &[error])),
            None => Ok(()),
        }
    }
}

/// As the clients' language words it.
fn number_fault(kind: &std::num::IntErrorKind) -> &'static str {
    match kind {
        std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => "value out of range",
        _ => "invalid syntax",
    }
}

/// What a deletion asks for, from its body and its query.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct DeleteOptions {
    pub(crate) grace: Option<i64>,
    pub(crate) uid: Option<String>,
    pub(crate) revision: Option<String>,
    pub(crate) propagation: Option<String>,
    pub(crate) dry_run: bool,
}

impl DeleteOptions {
    pub(crate) fn read(body: &Value, query: &Options) -> Result<Self> {
        let text = |value: &Value| value.as_str().map(String::from);
        let grace = match query.get("gracePeriodSeconds") {
            Some(given) => Some(given.parse().map_err(|e| ApiError::bad_request(format!("{given:?}: {e}")))?),
            None => body["gracePeriodSeconds"].as_i64(),
        };
        let orphan = body["orphanDependents"].as_bool().or(query.get("orphanDependents").map(|v| v == "true"));
        let propagation = text(&body["propagationPolicy"])
            .or(query.get("propagationPolicy").map(Into::into))
            .or(orphan.map(|orphan| if orphan { "Orphan" } else { "Background" }.into()));
        let invalid = |error| Err(ApiError::invalid("DeleteOptions", "meta.k8s.io", "", &[error]));
        if let Some(policy) = &propagation
            && !matches!(policy.as_str(), "Orphan" | "Background" | "Foreground")
        {
            let allowed = ["Background", "Foreground", "Orphan"];
            return invalid(FieldError::not_supported("propagationPolicy", &json!(policy), &allowed));
        }
        let body_dry = body["dryRun"].as_array().is_some_and(|all| all.iter().any(|v| v == "All"));
        let preconditions = &body["preconditions"];
        Ok(Self {
            grace,
            uid: text(&preconditions["uid"]),
            revision: text(&preconditions["resourceVersion"]),
            propagation,
            dry_run: body_dry || query.dry_run()?,
        })
    }
}
