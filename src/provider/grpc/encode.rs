//! From our types to the protocol's.

use std::time::Duration;

use jiff::Timestamp;
use vnode_proto::v1;

use crate::provider::{
    LogOptions, PodRef, ProviderError, PullCredentials, ResolvedContainer, ResolvedMount, ResolvedPod, ResolvedVolume,
    Result, SessionIo, TerminalSize, VolumeFile,
};

pub(super) fn pod_ref(pod: &PodRef) -> Option<v1::PodRef> {
    let PodRef { namespace, name, uid } = pod;
    Some(v1::PodRef { namespace: namespace.to_string(), name: name.to_string(), uid: uid.to_string() })
}

pub(super) fn pod(pod: &ResolvedPod) -> Result<v1::Pod> {
    let json = serde_json::to_vec(&*pod.pod).map_err(|error| ProviderError::Unavailable {
        message: format!("writing pod {} as JSON", pod.pod_ref()),
        retry_after: None,
        source: Some(Box::new(error)),
    })?;
    Ok(v1::Pod {
        json: json.into(),
        containers: pod.containers.iter().map(|(name, c)| (name.clone(), container(c))).collect(),
        volumes: pod.volumes.iter().map(|(name, v)| (name.clone(), volume(v))).collect(),
        unresolved: pod.unresolved.clone(),
        pull_credentials: pod.pull_secrets.iter().map(credentials).collect(),
    })
}

fn container(container: &ResolvedContainer) -> v1::Container {
    let ResolvedContainer { env, command, args, mounts, wants_pod_ips } = container;
    let variable =
        |v: &crate::provider::EnvVar| v1::EnvVar { name: v.name.clone(), value: v.value.clone(), secret: v.secret };
    v1::Container {
        env: env.iter().map(variable).collect(),
        command: command.clone(),
        args: args.clone(),
        mounts: mounts.iter().map(mount).collect(),
        wants_pod_ips: *wants_pod_ips,
    }
}

fn mount(mount: &ResolvedMount) -> v1::Mount {
    let ResolvedMount { volume, path, sub_path, read_only } = mount.clone();
    v1::Mount { volume, path, sub_path: sub_path.unwrap_or_default(), read_only }
}

fn volume(volume: &ResolvedVolume) -> v1::Volume {
    use v1::volume::Kind;
    let kind = match volume {
        ResolvedVolume::Files(set) => Kind::Files(v1::FileSet { files: set.files.iter().map(file).collect() }),
        ResolvedVolume::EmptyDir { medium, size_limit } => {
            Kind::EmptyDir(v1::EmptyDir { medium: medium.clone(), size_limit: *size_limit })
        }
        ResolvedVolume::HostPath { path, type_ } => {
            Kind::HostPath(v1::HostPath { path: path.clone(), r#type: type_.clone() })
        }
        ResolvedVolume::Other { kind } => Kind::Other((*kind).to_owned()),
    };
    v1::Volume { kind: Some(kind) }
}

fn file(file: &VolumeFile) -> v1::VolumeFile {
    let VolumeFile { path, content, mode, owner, secret } = file.clone();
    v1::VolumeFile { path, content, mode, owner, secret }
}

fn credentials(credentials: &PullCredentials) -> v1::PullCredentials {
    let PullCredentials { registry, username, password, identity_token, registry_token } = credentials.clone();
    v1::PullCredentials {
        registry,
        username,
        password,
        identity_token: identity_token.unwrap_or_default(),
        registry_token: registry_token.unwrap_or_default(),
    }
}

pub(super) fn duration(duration: Duration) -> prost_types::Duration {
    // Longer than the universe is old is for ever.
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    prost_types::Duration { seconds, nanos: duration.subsec_nanos().cast_signed() }
}

pub(super) fn time(time: Timestamp) -> prost_types::Timestamp {
    // The protocol counts nanoseconds forward, also before 1970.
    let (mut seconds, mut nanos) = (time.as_second(), time.subsec_nanosecond());
    if nanos < 0 {
        (seconds, nanos) = (seconds - 1, nanos + 1_000_000_000);
    }
    prost_types::Timestamp { seconds, nanos }
}

pub(super) fn logs(pod: &PodRef, container: &str, options: &LogOptions) -> v1::ReadLogsRequest {
    v1::ReadLogsRequest {
        pod: pod_ref(pod),
        container: container.to_owned(),
        follow: options.follow,
        previous: options.previous,
        tail_lines: options.tail,
        since: options.since.map(time),
    }
}

pub(super) fn session(io: &SessionIo) -> v1::SessionOptions {
    v1::SessionOptions {
        stdin: io.stdin.is_some(),
        stdout: io.stdout.is_some(),
        stderr: io.stderr.is_some(),
        tty: io.tty,
    }
}

pub(super) fn size(size: TerminalSize) -> v1::TerminalSize {
    v1::TerminalSize { width: size.width.into(), height: size.height.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{EnvVar, FileSet};
    use std::sync::Arc;

    #[test]
    fn all_of_a_resolved_pod_arrives() {
        let reference = serde_json::json!({"metadata": {"namespace": "ns", "name": "a", "uid": "u"}});
        let whole = ResolvedPod {
            pod: Arc::new(serde_json::from_value(reference).unwrap()),
            containers: [(
                "main".to_owned(),
                ResolvedContainer {
                    env: vec![EnvVar { name: "A".into(), value: "1".into(), secret: true }],
                    command: vec!["run".into()],
                    args: vec!["fast".into()],
                    mounts: vec![ResolvedMount {
                        volume: "v".into(),
                        path: "/v".into(),
                        sub_path: Some("part".into()),
                        read_only: true,
                    }],
                    wants_pod_ips: true,
                },
            )]
            .into(),
            volumes: [
                (
                    "v".to_owned(),
                    ResolvedVolume::Files(FileSet {
                        files: vec![VolumeFile {
                            path: "p".into(),
                            content: "c".into(),
                            mode: 0o644,
                            owner: Some(7),
                            secret: true,
                        }],
                    }),
                ),
                ("e".to_owned(), ResolvedVolume::EmptyDir { medium: "Memory".into(), size_limit: Some(9) }),
                ("h".to_owned(), ResolvedVolume::HostPath { path: "/h".into(), type_: "Directory".into() }),
                ("o".to_owned(), ResolvedVolume::Other { kind: "csi" }),
            ]
            .into(),
            unresolved: [("late".to_owned(), "a Secret".to_owned())].into(),
            pull_secrets: vec![PullCredentials {
                registry: "r".into(),
                username: "u".into(),
                password: "p".into(),
                identity_token: Some("i".into()),
                registry_token: None,
            }],
        };
        let sent = pod(&whole).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&sent.json).unwrap();
        assert_eq!(json["metadata"]["uid"], "u");
        assert_eq!((&json["kind"], &json["apiVersion"]), (&"Pod".into(), &"v1".into()));
        let main = &sent.containers["main"];
        assert_eq!((main.env[0].name.as_str(), main.env[0].value.as_str(), main.env[0].secret), ("A", "1", true));
        assert_eq!(
            (&main.command[0], &main.args[0], main.wants_pod_ips),
            (&"run".to_owned(), &"fast".to_owned(), true)
        );
        assert_eq!((main.mounts[0].sub_path.as_str(), main.mounts[0].read_only), ("part", true));
        let kinds: Vec<_> = sent.volumes.values().map(|v| v.kind.clone().unwrap()).collect();
        use v1::volume::Kind;
        assert!(matches!(&kinds[0], Kind::EmptyDir(e) if e.medium == "Memory" && e.size_limit == Some(9)));
        assert!(matches!(&kinds[1], Kind::HostPath(h) if h.path == "/h" && h.r#type == "Directory"));
        assert!(matches!(&kinds[2], Kind::Other(kind) if kind == "csi"));
        assert!(matches!(&kinds[3], Kind::Files(f) if f.files[0].mode == 0o644 && f.files[0].owner == Some(7)));
        assert_eq!(sent.unresolved["late"], "a Secret");
        assert_eq!(sent.pull_credentials[0].identity_token, "i");
    }

    #[test]
    fn times_before_1970_count_forward() {
        let early = Timestamp::new(-1, -500_000_000).unwrap();
        assert_eq!(time(early), prost_types::Timestamp { seconds: -2, nanos: 500_000_000 });
        assert_eq!(super::super::decode::time(&time(early)), Ok(early));
        assert_eq!(duration(Duration::MAX).seconds, i64::MAX);
    }
}
