//! CertificateSigningRequests. core: `pkg/apis/certificates/validation`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::pki::request::Request;
use crate::status::FieldError;

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

pub(super) fn validate(csr: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if old.is_none() {
        spec(&csr["spec"], &mut errors);
    }
    status(csr, old, &mut errors);
    errors
}

fn spec(spec: &Value, errors: &mut Vec<FieldError>) {
    let pem = STANDARD.decode(spec["request"].as_str().unwrap_or_default()).unwrap_or_default();
    if let Err(fault) = Request::from_pem(&pem) {
        errors.push(FieldError::invalid("spec.request", &spec["request"], &fault));
    }
    let usages = spec["usages"].as_array().map(Vec::as_slice).unwrap_or_default();
    if usages.is_empty() {
        errors.push(FieldError::required("spec.usages", ""));
    }
    for (i, usage) in usages.iter().enumerate() {
        if !usage.as_str().is_some_and(|usage| USAGES.contains(&usage)) {
            errors.push(FieldError::not_supported(format!("spec.usages[{i}]"), usage, &USAGES));
        } else if usages[..i].contains(usage) {
            errors.push(FieldError::duplicate(format!("spec.usages[{i}]"), usage));
        }
    }
    match spec["signerName"].as_str().unwrap_or_default() {
        "" => errors.push(FieldError::required("spec.signerName", "")),
        "kubernetes.io/legacy-unknown" => errors.push(FieldError::invalid(
            "spec.signerName",
            &spec["signerName"],
            "the legacy signerName is not allowed via this API version",
        )),
        name => {
            let (domain, path) = name.split_once('/').unwrap_or_default();
            if !domain.contains('.') || path.is_empty() {
                errors.push(FieldError::invalid(
                    "spec.signerName",
                    &json!(name),
                    "must be a fully qualified domain and path of the form 'example.com/signer-name'",
                ));
            }
        }
    }
    if spec["expirationSeconds"].as_i64().is_some_and(|seconds| seconds < 600) {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(FieldError::invalid("spec.expirationSeconds", &spec["expirationSeconds"], detail));
    }
}

fn status(csr: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    fn conditions(csr: &Value) -> Vec<(&str, &Value)> {
        let list = csr["status"]["conditions"].as_array().into_iter().flatten();
        list.map(|c| (c["type"].as_str().unwrap_or_default(), c)).collect()
    }
    const AT: &str = "status.conditions";
    let now = conditions(csr);
    let has = |list: &[(&str, &Value)], kind: &str| list.iter().any(|(k, _)| *k == kind);
    for (i, (kind, condition)) in now.iter().enumerate() {
        let at = |key: &str| format!("{AT}[{i}].{key}");
        if kind.is_empty() {
            errors.push(FieldError::required(at("type"), ""));
        }
        if matches!(*kind, "Approved" | "Denied" | "Failed") && condition["status"] != "True" {
            errors.push(FieldError::not_supported(at("status"), &condition["status"], &["True"]));
        }
        if now[..i].iter().any(|(other, _)| other == kind) {
            errors.push(FieldError::duplicate(at("type"), &json!(kind)));
        }
    }
    if has(&now, "Approved") && has(&now, "Denied") {
        let last = now.iter().rev().find(|(kind, _)| matches!(*kind, "Approved" | "Denied")).map(|(kind, _)| *kind);
        let detail = "Approved and Denied conditions are mutually exclusive";
        errors.push(FieldError::invalid(AT, &json!(last), detail));
    }
    let certificate = |csr: &Value| csr["status"]["certificate"].as_str().unwrap_or_default().to_owned();
    let before = old.map(certificate).unwrap_or_default();
    let present = certificate(csr);
    if present != before && !present.is_empty() {
        let pem = STANDARD.decode(&present).unwrap_or_default();
        if CertificateDer::from_pem_slice(&pem).is_err() {
            let value = json!("<certificate data>");
            let detail = "must contain at least one CERTIFICATE PEM block";
            errors.push(FieldError::invalid("status.certificate", &value, detail));
        }
    }
    if !before.is_empty() && present != before {
        let detail = "updates may not modify existing certificate content";
        errors.push(FieldError::forbidden("status.certificate", detail));
    }
    for (kind, _) in old.map(conditions).unwrap_or_default() {
        if matches!(kind, "Approved" | "Denied" | "Failed") && !has(&now, kind) {
            let detail = format!("updates may not remove a condition of type {kind:?}");
            errors.push(FieldError::forbidden(AT, &detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
    }

    #[test]
    fn requests_name_a_signer_a_usage_and_a_time_that_exist() {
        let bad = json!({"spec": {"request": "Z2FyYmFnZQ==", "usages": [], "signerName": "noslash", "expirationSeconds": 10}});
        assert_eq!(
            messages(&validate(&bad, None)),
            [
                "spec.request: Invalid value: \"Z2FyYmFnZQ==\": PEM block type must be CERTIFICATE REQUEST",
                "spec.usages: Required value",
                "spec.signerName: Invalid value: \"noslash\": must be a fully qualified domain and path of the form \
                 'example.com/signer-name'",
                "spec.expirationSeconds: Invalid value: 10: may not specify a duration less than 600 seconds (10 minutes)",
            ]
        );
    }

    #[test]
    fn a_decision_is_final() {
        let with = |kinds: &[&str]| {
            let conditions: Vec<_> = kinds.iter().map(|k| json!({"type": k, "status": "True"})).collect();
            json!({"status": {"conditions": conditions}})
        };
        assert!(validate(&with(&["Approved"]), Some(&with(&[]))).is_empty());
        assert_eq!(
            messages(&validate(&with(&["Approved", "Denied"]), Some(&with(&["Approved"])))),
            ["status.conditions: Invalid value: \"Denied\": Approved and Denied conditions are mutually exclusive"]
        );
        assert_eq!(
            messages(&validate(&with(&[]), Some(&with(&["Approved"])))),
            ["status.conditions: Forbidden: updates may not remove a condition of type \"Approved\""]
        );
        let issued = json!({"status": {"certificate": "YQ=="}});
        assert_eq!(
            messages(&validate(&json!({"status": {"certificate": "Yg=="}}), Some(&issued))),
            [
                "status.certificate: Invalid value: \"<certificate data>\": must contain at least one CERTIFICATE PEM block",
                "status.certificate: Forbidden: updates may not modify existing certificate content",
            ]
        );
    }
}
