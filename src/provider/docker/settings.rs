//! What one node's configuration comes to.

use std::path::{Component, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::connect::Target;
use crate::api::{DockerConfig, DockerVolumes};
use crate::provider::{Credentials, ProviderError, Result};

/// Where a Docker engine listens unless it is told otherwise.
pub(super) const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
/// Does nothing but hold namespaces and collect orphans.
const DEFAULT_SANDBOX: &str = "registry.k8s.io/pause:3.10";
const DEFAULT_PORTS: (u16, u16) = (2375, 2376);

/// Keys of the credentials Secret.
const CA: &str = "ca.crt";
const CERT: &str = "tls.crt";
const KEY: &str = "tls.key";

#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The mark on everything that is made.
    pub node: Arc<str>,
    pub target: Target,
    pub sandbox_image: String,
    pub sandbox_command: Vec<String>,
    pub network: Option<String>,
    /// Files are copied into volumes of the engine rather than mounted.
    pub copy: bool,
    pub host_paths: bool,
}

fn invalid(field: &str, message: impl Into<String>) -> ProviderError {
    ProviderError::Invalid { field: format!("spec.provider.docker.{field}"), message: message.into() }
}

fn wrong_secret(message: impl Into<String>) -> ProviderError {
    ProviderError::Invalid { field: "spec.credentialsSecretRef".into(), message: message.into() }
}

/// Checks a node's configuration. `local` says whether an engine of this machine may be used.
pub(super) fn check(
    config: &DockerConfig,
    credentials: Option<&Credentials>,
    node: Arc<str>,
    local: bool,
) -> Result<Settings> {
    let target = target(config.host.as_deref().unwrap_or(DEFAULT_HOST), credentials)?;
    let on_socket = matches!(target, Target::Unix(_));
    if on_socket && !local {
        return Err(invalid(
            "host",
            "whoever may use the socket of a container engine owns its machine, so this operator uses none; it must \
             be started with --allow-host-engine, or given an engine at tcp://",
        ));
    }
    let copy = config.volumes.map_or(!on_socket, |v| v == DockerVolumes::Copy);
    if !copy && !local {
        return Err(invalid(
            "volumes",
            "Mount hands folders of this machine to the engine: the operator must be started with --allow-host-engine",
        ));
    }
    for (n, path) in config.host_paths.iter().enumerate() {
        let path = PathBuf::from(path);
        if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
            return Err(invalid(&format!("hostPaths[{n}]"), "must be an absolute path"));
        }
        if copy {
            return Err(invalid(&format!("hostPaths[{n}]"), "needs volumes: Mount, on the engine's own machine"));
        }
    }
    let words = [("sandboxImage", &config.sandbox_image), ("network", &config.network)];
    for (field, word) in words {
        if word.as_ref().is_some_and(|w| w.is_empty() || w.contains(char::is_whitespace)) {
            return Err(invalid(field, "must not be empty or have spaces"));
        }
    }
    if config.network.as_ref().is_some_and(|n| n.starts_with("container:")) {
        return Err(invalid("network", "must be a network of the engine, not another container's"));
    }
    Ok(Settings {
        node,
        target,
        sandbox_image: config.sandbox_image.clone().unwrap_or_else(|| DEFAULT_SANDBOX.into()),
        sandbox_command: config.sandbox_command.clone(),
        network: config.network.clone(),
        copy,
        host_paths: !config.host_paths.is_empty(),
    })
}

fn target(host: &str, credentials: Option<&Credentials>) -> Result<Target> {
    let Some((scheme, rest)) = host.split_once("://") else {
        return Err(invalid("host", format!("{host:?} must be unix:///path or tcp://host:port")));
    };
    match scheme {
        "unix" if rest.starts_with('/') => Ok(Target::Unix(rest.into())),
        "tcp" => {
            let tls = credentials.map(tls).transpose()?.flatten();
            let default = if tls.is_some() { DEFAULT_PORTS.1 } else { DEFAULT_PORTS.0 };
            let (name, port) = address(rest.trim_end_matches('/'), default)
                .ok_or_else(|| invalid("host", format!("{host:?} must be tcp://host:port")))?;
            Ok(Target::Tcp { host: name, port, tls })
        }
        "unix" => Err(invalid("host", format!("{host:?} must have three slashes, as in unix:///run/engine.sock"))),
        "ssh" | "npipe" | "fd" => Err(invalid("host", format!("{scheme} is not spoken; use unix:// or tcp://"))),
        "http" | "https" => Err(invalid("host", format!("write tcp:// in place of {scheme}://"))),
        _ => Err(invalid("host", format!("{host:?} must be unix:///path or tcp://host:port"))),
    }
}

fn address(text: &str, default: u16) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, port)
        }
        None => text.find(':').map_or((text, ""), |at| text.split_at(at)),
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|p| *p > 0)?,
        None if port.is_empty() => default,
        None => return None,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    (!host.is_empty() && host.chars().all(plain)).then(|| (host.to_owned(), port))
}

/// TLS when the Secret has an authority; with a certificate when it has one.
fn tls(credentials: &Credentials) -> Result<Option<Arc<ClientConfig>>> {
    let get = |key: &str| credentials.0.get(key);
    let Some(ca) = get(CA) else {
        return match get(CERT).or(get(KEY)) {
            Some(_) => Err(wrong_secret(format!("the Secret has no {CA}: the authority that the engine is known by"))),
            None => Ok(None),
        };
    };
    let certificates = |key: &str, pem: &[u8]| {
        let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        let all = all.map_err(|e| wrong_secret(format!("{key} of the Secret: {e}")))?;
        if all.is_empty() { Err(wrong_secret(format!("{key} of the Secret holds no certificate"))) } else { Ok(all) }
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(CA, ca)? {
        roots.add(certificate).map_err(|e| wrong_secret(format!("{CA} of the Secret: {e}")))?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong_secret(e.to_string()))?
        .with_root_certificates(roots);
    let config = match (get(CERT), get(KEY)) {
        (Some(cert), Some(key)) => {
            let key = PrivateKeyDer::from_pem_slice(key);
            let key = key.map_err(|_| wrong_secret(format!("{KEY} of the Secret holds no private key")))?;
            let config = config.with_client_auth_cert(certificates(CERT, cert)?, key);
            config.map_err(|e| wrong_secret(format!("{CERT} and {KEY} of the Secret: {e}")))?
        }
        (None, None) => config.with_no_client_auth(),
        _ => return Err(wrong_secret(format!("{CERT} and {KEY} of the Secret go together; one is missing"))),
    };
    Ok(Some(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(host: &str, local: bool) -> Result<Settings> {
        check(&DockerConfig { host: Some(host.into()), ..DockerConfig::default() }, None, "n".into(), local)
    }

    #[test]
    fn hosts_are_read_or_refused_with_what_would_be_right() {
        for (host, want) in [
            ("unix:///run/podman.sock", None),
            ("tcp://10.0.0.1", None),
            ("tcp://engine.example:2375", None),
            ("tcp://[fd00::1]:2375/", None),
            ("tcp://", Some("tcp://host:port")),
            ("tcp://a:99999", Some("tcp://host:port")),
            ("tcp://[x]:1", Some("tcp://host:port")),
            ("unix://run/x", Some("three slashes")),
            ("ssh://a", Some("unix:// or tcp://")),
            ("https://a", Some("write tcp://")),
            ("/run/docker.sock", Some("unix:///path")),
        ] {
            let said = with(host, true).err().map(|e| e.to_string());
            match want {
                None => assert_eq!(said, None, "{host}"),
                Some(want) => {
                    let said = said.unwrap_or_default();
                    assert!(said.starts_with("spec.provider.docker.host: ") && said.contains(want), "{host}: {said}");
                }
            }
        }
        let Target::Tcp { host, port, tls } = with("tcp://[fd00::1]", true).unwrap().target else { panic!("tcp") };
        assert_eq!((host.as_str(), port, tls.is_none()), ("fd00::1", 2375, true));
    }

    #[test]
    fn a_socket_of_this_machine_must_be_allowed_and_a_remote_engine_need_not() {
        let said = with("unix:///run/podman.sock", false).unwrap_err().to_string();
        assert!(said.contains("--allow-host-engine"), "{said}");
        assert!(with("tcp://engine:2375", false).unwrap().copy, "no folder of this machine is handed over");
        let mount = DockerConfig {
            host: Some("tcp://engine:2375".into()),
            volumes: Some(DockerVolumes::Mount),
            ..DockerConfig::default()
        };
        assert!(check(&mount, None, "n".into(), false).is_err());
        assert!(!check(&mount, None, "n".into(), true).unwrap().copy);
    }

    #[test]
    fn what_is_wrong_with_the_secret_is_said_by_key() {
        let mut params = rcgen::CertificateParams::new(vec!["engine".into()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let (cert, key) = (params.self_signed(&key).unwrap().pem(), key.serialize_pem());
        for (keys, want) in [
            (vec![], Ok(false)),
            (vec![("ca.crt", cert.as_str())], Ok(true)),
            (vec![("ca.crt", &cert), ("tls.crt", &cert), ("tls.key", &key)], Ok(true)),
            (vec![("tls.crt", &cert), ("tls.key", &key)], Err("no ca.crt")),
            (vec![("ca.crt", &cert), ("tls.crt", &cert)], Err("go together")),
            (vec![("ca.crt", "nothing")], Err("ca.crt of the Secret holds no certificate")),
            (vec![("ca.crt", &cert), ("tls.crt", &cert), ("tls.key", "x")], Err("holds no private key")),
        ] {
            let data = keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned().into())).collect();
            match (target("tcp://engine", Some(&Credentials(data))), want) {
                (Ok(Target::Tcp { tls, port, .. }), Ok(want)) => {
                    assert_eq!((tls.is_some(), port), (want, if want { 2376 } else { 2375 }));
                }
                (Err(error), Err(want)) => assert!(error.to_string().contains(want), "{error}"),
                (other, want) => panic!("{other:?}, not {want:?}"),
            }
        }
    }
}
