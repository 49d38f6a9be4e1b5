//! Query parameters: `ListOptions`, `CreateOptions`, `PatchOptions`, `DeleteOptions`.

use serde_json::{Value, json};

use crate::status::{ApiError, FieldError, Result};

/// Longest name of a field manager.
const MANAGER_LIMIT: usize = 128;

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
    /// What errors call the parameters.
    pub(crate) kind: &'static str,
}

impl Options {
    pub(crate) fn parse(query: Option<&str>) -> Self {
        Self { parameters: super::path::query(query.unwrap_or_default()), kind: "CreateOptions" }
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
        for (_, value) in self.parameters.iter().filter(|(k, _)| k == "dryRun") {
            if value != "All" {
                let given: Vec<_> = self.all("dryRun").collect();
                let error = FieldError::not_supported("dryRun", &json!(given), &["All"]);
                return Err(ApiError::invalid(self.kind, "meta.k8s.io", "", &[error]));
            }
            dry = true;
        }
        Ok(dry)
    }

    /// Refuses to force what is no apply patch. apimachinery: `ValidatePatchOptions`.
    pub(crate) fn check_unforced(&self) -> Result<()> {
        if self.get("force").is_none() {
            return Ok(());
        }
        let error = FieldError::forbidden("force", "may not be specified for non-apply patch");
        Err(ApiError::invalid(self.kind, "meta.k8s.io", "", &[error]))
    }

    /// Refuses a `timeout` that is no duration in the clients' language, as in `1m30s`.
    pub(crate) fn check_timeout(&self) -> Result<()> {
        let Some(text) = self.get("timeout").filter(|text| !text.is_empty()) else { return Ok(()) };
        let fault = match text.parse::<jiff::SignedDuration>() {
            _ if text == "0" => return Ok(()),
            Ok(_) if !text.contains([' ', ',']) && !text.ends_with(|c: char| c.is_ascii_digit()) => return Ok(()),
            _ if text.ends_with(|c: char| c.is_ascii_digit()) && text.parse::<f64>().is_ok() => {
                format!("time: missing unit in duration {text:?}")
            }
            _ => format!("time: invalid duration {text:?}"),
        };
        Err(ApiError::bad_request(format!("invalid timeout specified in the request URL - {fault}")))
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
                Err(ApiError::invalid(self.kind, "meta.k8s.io", "", &[error]))
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

    /// Checks the field manager's name. apimachinery: `ValidateFieldManager`.
    pub(crate) fn check_manager(&self) -> Result<()> {
        let Some(manager) = self.get("fieldManager").filter(|manager| !manager.is_empty()) else { return Ok(()) };
        let mut errors = Vec::new();
        if manager.len() > MANAGER_LIMIT {
            errors.push(crate::validate::too_long("fieldManager", MANAGER_LIMIT));
        }
        for (at, character) in manager.char_indices().filter(|(_, c)| c.is_control()) {
            let detail = format!("invalid character U+{:04X} (at position {at})", u32::from(character));
            errors.push(FieldError::invalid("fieldManager", &json!(manager), &detail));
        }
        match errors.is_empty() {
            true => Ok(()),
            false => Err(ApiError::invalid(self.kind, "meta.k8s.io", "", &errors)),
        }
    }

    pub(crate) fn revision(&self) -> Result<Option<u64>> {
        let Some(text) = self.get("resourceVersion").filter(|t| !t.is_empty()) else { return Ok(None) };
        // A leading plus is fine for Rust alone.
        let parsed = if text.starts_with('+') { "+".parse() } else { text.parse::<u64>() };
        parsed.map(Some).map_err(|error| {
            let fault = number_fault(error.kind());
            let said =
                format!("resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: {fault}");
            match self.flag("watch") {
                true => ApiError::new(500, "", said),
                false => ApiError::bad_request(format!("invalid resource version: {said}")),
            }
        })
    }

    /// Checks how the parameters of a list or watch go together. apimachinery: `ValidateListOptions`.
    pub(crate) fn check_list(&self) -> Result<()> {
        self.number("timeoutSeconds")?;
        let watch = self.flag("watch");
        let given = |name: &str| self.get(name).filter(|value| !value.is_empty());
        let (mut matched, version) = (given("resourceVersionMatch"), given("resourceVersion"));
        let mut initial = self.get("sendInitialEvents").is_some();
        if watch && !initial && matched.is_none() && matches!(version, None | Some("0")) {
            // A watch from any version begins with what is there. apimachinery: `SetListOptionsDefaults`.
            (matched, initial) = (Some("NotOlderThan"), true);
        }
        let mut errors = Vec::new();
        let mut forbid = |wrong: bool, field: &str, detail: &str| {
            if wrong {
                errors.push(FieldError::forbidden(field, detail));
            }
        };
        const MATCH: &str = "resourceVersionMatch";
        let is = |value: &str| matched == Some(value);
        let goes_on = matched.is_some() && given("continue").is_some();
        let continued = "resourceVersionMatch is forbidden when continue is provided";
        let unknown = matched.filter(|value| *value != "NotOlderThan" && (watch || *value != "Exact"));
        if watch {
            let wanted = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            forbid(initial && !is("NotOlderThan"), MATCH, wanted);
            let lonely = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            forbid(!initial && matched.is_some(), MATCH, lonely);
        } else {
            let lonely = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            forbid(matched.is_some() && version.is_none(), MATCH, lonely);
            forbid(goes_on, MATCH, continued);
        }
        if let Some(value) = unknown {
            let allowed: &[&str] = if watch { &["NotOlderThan"] } else { &["Exact", "NotOlderThan", ""] };
            errors.push(FieldError::not_supported(MATCH, &json!(value), allowed));
        }
        let mut forbid = |wrong: bool, field: &str, detail: &str| {
            if wrong {
                errors.push(FieldError::forbidden(field, detail));
            }
        };
        if watch {
            forbid(goes_on, MATCH, continued);
        } else {
            let zero = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            forbid(is("Exact") && version == Some("0"), MATCH, zero);
            forbid(initial, "sendInitialEvents", "sendInitialEvents is forbidden for list");
        }
        match errors.is_empty() {
            true => Ok(()),
            false => Err(ApiError::invalid("ListOptions", "meta.k8s.io", "", &errors)),
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
            Some(given) => Some(given.parse().map_err(|e: std::num::ParseIntError| {
                let fault = number_fault(e.kind());
                ApiError::bad_request(format!("strconv.ParseInt: parsing {given:?}: {fault}"))
            })?),
            None => body["gracePeriodSeconds"].as_i64(),
        };
        let orphan = body["orphanDependents"].as_bool().or(query.get("orphanDependents").map(|v| v == "true"));
        let policy = text(&body["propagationPolicy"]).or(query.get("propagationPolicy").map(Into::into));
        let mut errors = Vec::new();
        if let Some(policy) = &policy {
            if orphan.is_some() {
                let detail = "orphanDependents and deletionPropagation cannot be both set";
                errors.push(FieldError::invalid("propagationPolicy", &json!(policy), detail));
            }
            let allowed = ["Foreground", "Background", "Orphan", "nil"];
            if !allowed[..3].contains(&policy.as_str()) {
                errors.push(FieldError::not_supported("propagationPolicy", &json!(policy), &allowed));
            }
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid("DeleteOptions", "meta.k8s.io", "", &errors));
        }
        let propagation = policy.or(orphan.map(|orphan| if orphan { "Orphan" } else { "Background" }.into()));
        let dry = body["dryRun"].as_array().map(Vec::as_slice).unwrap_or_default();
        if dry.iter().any(|v| v != "All") {
            errors.push(FieldError::not_supported("dryRun", &body["dryRun"], &["All"]));
            return Err(ApiError::invalid("DeleteOptions", "meta.k8s.io", "", &errors));
        }
        let body_dry = !dry.is_empty();
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
