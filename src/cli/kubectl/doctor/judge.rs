//! From what was seen to a verdict, and to what mends it.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;

use super::super::output::span;
use super::super::peer::{PeerError, Shown};
use super::{Check, Verdict};
use crate::api::{VirtualNode, conditions, names};

pub(super) const CRD: &str = "CRD";
pub(super) const LEASE: &str = "lease";
pub(super) const CERTIFICATE: &str = "certificate";

/// The conditions that the operator keeps, each a link, with what mends it.
pub(super) fn conditions(vn: &VirtualNode) -> Vec<Check> {
    let Some(status) = vn.status.as_ref().filter(|s| !s.conditions.is_empty()) else {
        return vec![Check::broken(
            "operator",
            "it has never looked at this VirtualNode",
            "see whether it runs: kubectl -n vnode-system get pods,events",
        )];
    };
    let mut checks = Vec::new();
    if status.observed_generation != vn.metadata.generation {
        checks.push(Check::broken(
            "operator",
            "it has not seen the last change of the spec",
            "see whether it runs: kubectl -n vnode-system get pods,events",
        ));
    }
    for kind in conditions::PARTS {
        let link = link(kind);
        let check = match status.conditions.iter().find(|c| c.type_ == kind) {
            Some(c) if c.status == "True" => Check::ok(link, c.message.clone()),
            Some(c) => Check::broken(link, format!("{}: {}", c.reason, c.message), mend(kind, &c.reason)),
            None => Check::new(link, Verdict::Skipped, "the operator has not said it yet"),
        };
        checks.push(check);
    }
    checks
}

fn link(kind: &str) -> &'static str {
    match kind {
        conditions::ACCEPTED => "spec",
        conditions::CREDENTIALS_READY => "credentials",
        conditions::PROVIDER_REACHABLE => "provider",
        conditions::REGISTERED => "registration",
        _ => "kubelet port",
    }
}

fn mend(kind: &str, reason: &str) -> &'static str {
    match (kind, reason) {
        (conditions::ACCEPTED, _) => "change the spec as the message says, or choose another name",
        (conditions::CREDENTIALS_READY, _) => {
            "create the Secret of spec.credentialsSecretRef in the operator's namespace; it is looked for again by itself"
        }
        (conditions::PROVIDER_REACHABLE, "ProviderInvalid") => "correct spec.provider as the message says",
        (conditions::PROVIDER_REACHABLE, "NotYetKnown") => "wait some seconds and look again",
        (conditions::PROVIDER_REACHABLE, _) => {
            "see that the service behind the node runs and that the operator reaches it"
        }
        (conditions::REGISTERED, _) => "see the message; a Node of that name that is somebody else's is never touched",
        (_, "PortTaken" | "NoPortLeft") => {
            "choose another spec.kubelet.port, or give the operator a larger --kubelet-ports"
        }
        _ => "see the message, and `kubectl vnode logs` of the node",
    }
}

/// The Node: there, ours, and as the VirtualNode says.
pub(super) fn registered(vn: &VirtualNode, node: Option<&Node>) -> Vec<Check> {
    let Some(node) = node else {
        return vec![Check::broken("Node", "there is none of this name", "the operator makes it; see `registration`")];
    };
    let owner = node.metadata.annotations.as_ref().and_then(|a| a.get(names::OWNER_UID));
    if owner != vn.metadata.uid.as_ref() {
        let fix = "delete that Node if nobody needs it, or rename the VirtualNode";
        return vec![Check::broken("Node", "the Node of this name belongs to somebody else", fix)];
    }
    let status = node.status.as_ref();
    let ready = status.and_then(|s| s.conditions.as_ref()).and_then(|c| c.iter().find(|c| c.type_ == "Ready"));
    let mut checks = vec![match ready {
        Some(c) if c.status == "True" => Check::ok("Node", "Ready"),
        Some(c) => {
            let said = format!("Ready is {}: {}", c.status, c.message.as_deref().unwrap_or_default());
            Check::broken("Node", said, "Unknown means that heartbeats stopped: see `lease`; False: see `provider`")
        }
        None => Check::broken("Node", "it has no condition Ready", "the operator writes it; see `kubectl vnode logs`"),
    }];
    let addresses = status.and_then(|s| s.addresses.clone()).unwrap_or_default();
    let port = status
        .and_then(|s| s.daemon_endpoints.as_ref())
        .and_then(|d| d.kubelet_endpoint.as_ref())
        .map_or(0, |e| e.port);
    let shown: Vec<_> = addresses.iter().map(|a| format!("{} {}", a.type_, a.address)).collect();
    let seen = format!("{}, port {port}", if shown.is_empty() { "none".into() } else { shown.join(", ") });
    checks.push(if addresses.is_empty() || port == 0 {
        let fix = "set the operator's --node-ip, or spec.addresses";
        Check::broken("address", seen, fix)
    } else if addresses.iter().any(|a| a.type_ == "Hostname" && a.address.parse::<IpAddr>().is_err()) {
        let fix =
            "API servers prefer a Hostname address: unless it resolves where they run, take it out of spec.addresses";
        Check::new("address", Verdict::Note, seen).with_fix(fix)
    } else {
        Check::ok("address", seen)
    });
    checks
}

/// Whether heartbeats come.
pub(super) fn lease(lease: Option<&Lease>, now: Timestamp) -> Check {
    let renewed = lease.and_then(|l| l.spec.as_ref()).and_then(|s| s.renew_time.as_ref()).map(|t| t.0);
    let Some(renewed) = renewed else {
        let fix = "the operator needs create and patch on leases in kube-node-lease";
        return Check::broken(LEASE, "there is none in kube-node-lease", fix);
    };
    let ago = now.as_second() - renewed.as_second();
    let good_for = names::LEASE_DURATION.as_secs().cast_signed();
    let seen = format!("renewed {} ago", span(ago.max(0)));
    if ago <= good_for {
        Check::ok(LEASE, seen)
    } else {
        let fix = "the operator that ran this node is gone or starved: kubectl -n vnode-system get pods; \
                   kubectl vnode status shows the shards";
        Check::broken(LEASE, seen, fix)
    }
}

/// What the port shows.
pub(super) fn certificate(shown: &Result<Shown, PeerError>, address: IpAddr, now: Timestamp) -> Vec<Check> {
    let shown = match shown {
        Ok(shown) => shown,
        Err(error @ PeerError::Dial(_)) => {
            let note = Check::new("port", Verdict::Note, error.to_string());
            return vec![note.with_fix("no harm if the API server reaches it, which the next links say")];
        }
        Err(error) => {
            let fix = "something else listens there: choose another spec.kubelet.port";
            return vec![Check::ok("port", "open"), Check::broken(CERTIFICATE, error.to_string(), fix)];
        }
    };
    let left = shown.not_after.as_second() - now.as_second();
    let named = shown.names.iter().any(|n| n.parse() == Ok(address));
    let seen = format!("{}, for {}, {} left", shown.issuer, shown.names.join(" "), span(left.max(0)));
    let check = if left <= 0 {
        Check::broken(CERTIFICATE, seen, "restart the operator: it should have been renewed by itself")
    } else if shown.not_before > now {
        Check::broken(CERTIFICATE, "it is not valid yet", "set the clock of the operator's machine")
    } else if !named {
        let fix = "API servers that verify kubelets' certificates refuse it: put the address into --node-ip or spec.addresses";
        Check::new(CERTIFICATE, Verdict::Note, seen).with_fix(fix)
    } else {
        Check::ok(CERTIFICATE, seen)
    };
    vec![Check::ok("port", "open"), check]
}

/// What an answer of the API server on behalf of the node says of the way between them.
pub(super) fn round_trip(link: &'static str, answer: Result<String, (u16, String)>) -> Check {
    let (code, said) = match answer {
        Ok(seen) => return Check::ok(link, seen),
        Err(answer) => answer,
    };
    let fix = cause(code, &said);
    let said = said.trim();
    let short: String = said.chars().take(300).collect();
    let seen = format!("{code}: {}{}", short.replace('\n', " "), if short.len() < said.len() { "…" } else { "" });
    // A right that the asking person lacks says nothing of the node.
    if fix.starts_with("you lack") {
        return Check::new(link, Verdict::Skipped, seen).with_fix(fix);
    }
    Check::broken(link, seen, fix)
}

fn cause(code: u16, said: &str) -> String {
    let has = |words: &[&str]| words.iter().any(|w| said.contains(w));
    let fix = if has(&["Forbidden (user="]) {
        "the node refuses the API server's client: bind its user to the ClusterRole system:kubelet-api-admin"
    } else if code == 403 {
        "you lack the right yourself: ask for nodes/proxy, pods/log and pods/exec"
    } else if has(&["no such host", "lookup ", "Name or service not known"]) {
        "the API server cannot resolve the node's address: take the Hostname out of spec.addresses"
    } else if has(&["x509", "certificate signed by unknown authority", "tls: failed to verify"]) {
        "the API server verifies kubelets' certificates (--kubelet-certificate-authority) and does not know this one's issuer"
    } else if code == 401 || has(&["Unauthorized"]) {
        "the node does not know the API server's client certificate: the operator must read the ConfigMap \
         kube-system/extension-apiserver-authentication (RoleBinding vnode in kube-system)"
    } else if has(&["connection refused"]) {
        "nothing listens at the node's address and port: see `kubelet port` and `address`; NAT needs spec.addresses"
    } else if has(&["timeout", "timed out", "deadline exceeded", "no route to host", "no answer"]) {
        "packets are lost between API server and operator: open --kubelet-ports in firewalls, security groups and \
         NetworkPolicies (private GKE clusters: a firewall rule from the control plane's range)"
    } else if has(&["dial", "connect", "error trying to reach"]) {
        "the API server cannot connect to the operator's address: see `address`, and whether the network lets it pass"
    } else {
        "see the message, and `kubectl vnode logs` of the node"
    };
    fix.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_failure_of_the_way_to_the_node_names_its_own_cure() {
        for (code, said, cure) in [
            (503, "error trying to reach service: dial tcp 10.0.0.1:20000: i/o timeout", "firewall"),
            (502, "dial tcp 10.0.0.1:20000: connect: connection refused", "nothing listens"),
            (500, "Get https://edge:20000/: dial tcp: lookup edge on 10.0.0.10:53: no such host", "Hostname"),
            (500, "tls: failed to verify certificate: x509: certificate signed by unknown authority", "issuer"),
            (401, "Unauthorized", "extension-apiserver-authentication"),
            (
                403,
                "Forbidden (user=kube-apiserver, verb=get, resource=nodes, subresource(s)=[proxy])",
                "kubelet-api-admin",
            ),
            (500, "an oddity", "logs"),
        ] {
            let check = round_trip("logs", Err((code, said.into())));
            assert_eq!(check.verdict, Verdict::Broken, "{said}");
            assert!(check.fix.contains(cure), "{said}: {}", check.fix);
        }
        let mine = round_trip("logs", Err((403, r#"pods "x" is forbidden: User "jane" cannot get"#.into())));
        assert_eq!(mine.verdict, Verdict::Skipped);
    }

    #[test]
    fn a_lease_is_fresh_for_forty_seconds() {
        let of = |renewed: &str| -> Lease { serde_json::from_value(json!({"spec": {"renewTime": renewed}})).unwrap() };
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        assert_eq!(lease(Some(&of("2026-01-01T00:00:30.000000Z")), now).verdict, Verdict::Ok);
        assert_eq!(lease(Some(&of("2026-01-01T00:00:10.000000Z")), now).verdict, Verdict::Broken);
        assert!(lease(None, now).fix.contains("kube-node-lease"));
    }

    #[test]
    fn a_certificate_must_name_the_address_and_be_valid() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut shown = Shown {
            subject: "CN=x".into(),
            issuer: "CN=y".into(),
            names: vec!["10.0.0.1".into()],
            not_before: "2025-01-01T00:00:00Z".parse().unwrap(),
            not_after: "2027-01-01T00:00:00Z".parse().unwrap(),
        };
        let verdict = |shown: &Shown, ip: &str| certificate(&Ok(shown.clone()), ip.parse().unwrap(), now)[1].verdict;
        assert_eq!(verdict(&shown, "10.0.0.1"), Verdict::Ok);
        assert_eq!(verdict(&shown, "10.0.0.2"), Verdict::Note);
        shown.not_after = now;
        assert_eq!(verdict(&shown, "10.0.0.1"), Verdict::Broken);
        let far = certificate(&Err(PeerError::Dial("refused".into())), "10.0.0.1".parse().unwrap(), now);
        assert_eq!(far[0].verdict, Verdict::Note);
    }

    #[test]
    fn conditions_become_links_and_a_node_that_nobody_saw_is_the_operators_fault() {
        let vn = |status: serde_json::Value| -> VirtualNode {
            serde_json::from_value(json!({"apiVersion": "vnode.dev/v1alpha1", "kind": "VirtualNode",
                "metadata": {"name": "a", "generation": 2},
                "spec": {"provider": {"type": "mock", "mock": {}}}, "status": status}))
            .unwrap()
        };
        assert_eq!(conditions(&vn(json!({})))[0].link, "operator");
        let missing = json!({"observedGeneration": 2, "conditions": [{"type": "CredentialsReady", "status": "False",
            "reason": "SecretNotFound", "message": "no Secret", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        let checks = conditions(&vn(missing));
        let broken: Vec<_> = checks.iter().filter(|c| c.verdict == Verdict::Broken).collect();
        assert_eq!(broken.len(), 1);
        assert!(broken[0].fix.contains("credentialsSecretRef"));
    }
}
