use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodSecurityContext, SecurityContext};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

use super::*;
use crate::provider::docker::volumes::{Able, places};
use crate::provider::runtime::{ContainerRef, Mount};
use crate::provider::{EnvVar, FileSet, PodRef, ResolvedPod};

fn pod_ref() -> PodRef {
    PodRef { namespace: "default".into(), name: "web".into(), uid: "u1".into() }
}

fn settings(copy: bool) -> Settings {
    Settings {
        node: "node".into(),
        target: super::super::connect::Target::Unix("/run/x".into()),
        sandbox_image: "pause".into(),
        sandbox_command: Vec::new(),
        network: Some("pods".into()),
        copy,
        host_paths: false,
    }
}

fn sandbox_spec(spec: Value, volumes: Vec<(&str, ResolvedVolume)>) -> SandboxSpec {
    let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
    let volumes = volumes.into_iter().map(|(n, v)| (n.to_owned(), v)).collect();
    SandboxSpec {
        pod: pod_ref(),
        resolved: ResolvedPod { pod: Arc::new(pod), volumes, ..ResolvedPod::default() },
        hostname: "web".into(),
        dir: "/state/u1".into(),
    }
}

fn container_spec() -> ContainerSpec {
    ContainerSpec {
        container: ContainerRef { pod: pod_ref(), name: "main".into(), attempt: 2, id: String::new() },
        labels: Default::default(),
        image: "busybox:1".into(),
        image_id: "sha256:1".into(),
        command: vec!["sh".into()],
        args: vec!["-c".into(), "x".into()],
        env: vec![EnvVar { name: "A".into(), value: "b=c".into(), secret: true }],
        working_dir: None,
        mounts: Vec::new(),
        target: None,
        tty: false,
        stdin: true,
        stdin_once: true,
        security: SecurityContext::default(),
        pod_security: PodSecurityContext::default(),
        run_as_user: None,
        run_as_group: None,
        resources: ResourceRequirements::default(),
        stop_signal: None,
        termination_message_path: "/dev/termination-log".into(),
        termination_message_file: "/state/u1/containers/main/2/termination-log".into(),
        hostname: "web".into(),
        hosts: String::new(),
        dir: "/state/u1/containers/main/2".into(),
    }
}

fn made(spec: &ContainerSpec, sharing: Sharing, podman: bool) -> Result<ContainerCreateBody> {
    let settings = settings(false);
    let around = Around { settings: &settings, podman, sharing, target: None, places: &[], user: None };
    container(spec, &around)
}

#[test]
fn the_network_holder_has_what_the_pod_shares() {
    let memory = ResolvedVolume::EmptyDir { medium: "Memory".into(), size_limit: Some(1024) };
    let spec = sandbox_spec(
        json!({
            "shareProcessNamespace": true,
            "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a", "b"]}],
            "dnsConfig": {"nameservers": ["1.1.1.1"], "options": [{"name": "ndots", "value": "2"}]},
            "securityContext": {"sysctls": [{"name": "net.core.somaxconn", "value": "1"}]},
            "containers": [{"name": "main", "ports": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}]}],
        }),
        vec![("scratch", memory), ("config", ResolvedVolume::Files(FileSet::default()))],
    );
    let body = sandbox(&spec, &settings(false));
    let host = body.host_config.unwrap();
    assert_eq!(host.network_mode.as_deref(), Some("pods"));
    assert_eq!(host.extra_hosts.unwrap(), ["a:10.0.0.1", "b:10.0.0.1"]);
    assert_eq!(host.dns_options.unwrap(), ["ndots:2"]);
    assert_eq!(host.sysctls.unwrap()["net.core.somaxconn"], "1");
    let ports = host.port_bindings.unwrap();
    assert_eq!(ports.len(), 1);
    assert_eq!(ports["80/tcp"].as_ref().unwrap()[0].host_port.as_deref(), Some("8080"));
    assert_eq!(host.mounts.unwrap().len(), 1, "only the volume in memory is the engine's");
    let labels = body.labels.unwrap();
    assert_eq!((labels[names::SANDBOX].as_str(), labels[names::SHARING].as_str()), ("scratch", "pid"));
    assert_eq!(Sharing::read(&labels[names::SHARING]), Sharing { pid: true, ..Sharing::default() });
    assert_eq!(holds_network_of(&labels), Some(spec.pod.clone()));
    assert_eq!(holds_network_of(&names::labels("node", &spec.pod)), None, "it is another container's");
    assert_eq!(engine_volumes(&spec, true).len(), 2, "all of them when files are copied");
    let memory = &spec.resolved.volumes["scratch"];
    assert_eq!(volume_options(memory, false)["o"], "mode=1777,size=1024");
    assert_eq!(volume_options(memory, true)["o"], "mode=1777,nr_blocks=1");

    let host = sandbox(&sandbox_spec(json!({"hostNetwork": true, "containers": []}), vec![]), &settings(false));
    assert_eq!(host.host_config.unwrap().network_mode.as_deref(), Some("host"));
    assert_eq!(host.hostname, None, "the machine's name is not the pod's to set");
    assert_eq!(holds_network_of(&host.labels.unwrap()), None);
}

#[test]
fn a_container_joins_its_pod_and_keeps_to_its_limits() {
    let mut spec = container_spec();
    let quantity = |q: &[(&str, &str)]| q.iter().map(|(k, v)| ((*k).to_owned(), Quantity((*v).into()))).collect();
    spec.resources.limits = Some(quantity(&[("cpu", "1500m"), ("memory", "64Mi")]));
    spec.resources.requests = Some(quantity(&[("cpu", "250m")]));
    spec.security = serde_json::from_value(json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
        "seccompProfile": {"type": "Unconfined"},
        "appArmorProfile": {"type": "Localhost", "localhostProfile": "strict"},
        "seLinuxOptions": {"level": "s0:c1"},
    }))
    .unwrap();
    spec.pod_security = serde_json::from_value(json!({"supplementalGroups": [5, 6], "fsGroup": 7})).unwrap();
    let body = made(&spec, Sharing::default(), false).unwrap();
    let host = body.host_config.unwrap();
    let sandbox = "container:vnode_POD_web_default_u1";
    assert_eq!(host.network_mode.as_deref(), Some(sandbox));
    assert_eq!((host.ipc_mode.as_deref(), host.pid_mode.as_deref()), (Some(sandbox), None));
    assert_eq!(host.uts_mode, None, "Docker has no such thing");
    assert_eq!((host.cpu_quota, host.cpu_period, host.cpu_shares), (Some(150_000), Some(100_000), Some(256)));
    assert_eq!((host.memory, host.memory_swap), (Some(64 << 20), Some(64 << 20)));
    assert_eq!(host.group_add.unwrap(), ["5", "6", "7"]);
    let options = host.security_opt.unwrap();
    assert_eq!(options, ["no-new-privileges", "seccomp=unconfined", "apparmor=strict", "label=level:s0:c1"]);
    assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
    assert_eq!(body.env.unwrap(), ["A=b=c"]);
    assert_eq!((body.entrypoint.unwrap(), body.cmd.unwrap()), (vec!["sh".to_owned()], vec!["-c".into(), "x".into()]));
    assert_eq!(body.labels.unwrap()[names::ATTEMPT], "2");

    let all = Sharing { host_network: true, host_pid: true, host_ipc: true, pid: false };
    let host = made(&container_spec(), all, true).unwrap().host_config.unwrap();
    for mode in [host.network_mode, host.ipc_mode, host.pid_mode] {
        assert_eq!(mode.as_deref(), Some("host"));
    }
    assert_eq!((host.cpu_shares, host.cpu_quota, host.memory), (Some(2), None, None), "who asks for nothing is last");
    let host = made(&container_spec(), Sharing { pid: true, ..Sharing::default() }, true).unwrap().host_config.unwrap();
    assert_eq!((host.pid_mode.as_deref(), host.uts_mode.as_deref()), (Some(sandbox), Some(sandbox)));
}

#[test]
fn what_an_engine_cannot_do_is_refused_with_the_fields_name() {
    let mut spec = container_spec();
    spec.security.seccomp_profile =
        serde_json::from_value(json!({"type": "Localhost", "localhostProfile": "a.json"})).unwrap();
    let said = made(&spec, Sharing::default(), false).unwrap_err();
    assert_eq!(said.reason(), "CreateContainerConfigError");
    assert!(said.to_string().contains("seccompProfile"), "{said}");
}

#[test]
fn mounts_are_folders_here_or_volumes_there() {
    let mount = |volume: &str, source: &str| Mount {
        volume: volume.into(),
        source: source.into(),
        target: format!("/{volume}"),
        read_only: false,
        generated: false,
        propagation: None,
    };
    let mut spec = container_spec();
    spec.mounts = vec![
        mount("config", "/state/u1/volumes/config"),
        mount("scratch", "/state/u1/volumes/scratch/a/b"),
        mount("key", "/state/u1/containers/main/2/parts/0"),
    ];
    let able = |copy, podman, minor| Able { copy, podman, minor };
    let sources = |places: Vec<Place>| places.into_iter().map(|p| p.source).collect::<Vec<_>>();
    let path = |p: &str| Source::Path(p.into());
    let here = places(&spec, &[], able(false, true, 41)).unwrap();
    assert_eq!(
        sources(here.mounted),
        [
            path("/state/u1/volumes/config"),
            path("/state/u1/volumes/scratch/a/b"),
            path("/state/u1/containers/main/2/parts/0"),
            path("/state/u1/containers/main/2/termination-log"),
        ]
    );
    let there = places(&spec, &["config", "scratch"], able(true, false, 45)).unwrap();
    let volume = |name: &str, sub: Option<&str>| Source::Volume { name: name.into(), sub_path: sub.map(Into::into) };
    assert_eq!(sources(there.mounted), [volume("vnode_u1_config", None), volume("vnode_u1_scratch", Some("a/b"))]);
    assert_eq!(there.copied, [(PathBuf::from("/state/u1/containers/main/2/parts/0"), "/key".to_owned())]);
    for old in [able(true, false, 44), able(true, true, 50)] {
        let said = places(&spec, &["config", "scratch"], old).unwrap_err().to_string();
        assert!(said.contains("subPath of volume \"scratch\""), "{said}");
    }
    spec.mounts = vec![mount("host", "/srv")];
    assert!(places(&spec, &[], able(true, false, 45)).is_err(), "a folder here is none of another machine");
}

#[test]
fn a_container_that_debugs_another_sees_its_processes() {
    let settings = settings(false);
    let around = |target| Around {
        settings: &settings,
        podman: false,
        sharing: Sharing::default(),
        target,
        places: &[],
        user: None,
    };
    let alone = container(&container_spec(), &around(None)).unwrap();
    assert_eq!(alone.host_config.unwrap().pid_mode, None);
    let guest = container(&container_spec(), &around(Some("0123"))).unwrap();
    assert_eq!(guest.labels.unwrap()[names::TARGET], "0123", "so that it is removed before the other");
    assert_eq!(guest.host_config.unwrap().pid_mode.as_deref(), Some("container:0123"));
}

#[test]
fn limits_that_are_taken_back_are_said_to_an_engine() {
    let of = |spec: Value| serde_json::from_value::<ResourceRequirements>(spec).unwrap();
    let some = of(json!({"limits": {"cpu": "500m", "memory": "1Mi"}}));
    let body = changed_limits(&some).unwrap();
    assert_eq!((body.cpu_quota, body.memory, body.memory_swap), (Some(50_000), Some(1 << 20), Some(1 << 20)));
    let none = changed_limits(&of(json!({}))).unwrap();
    assert_eq!((none.cpu_quota, none.memory, none.cpu_shares), (Some(-1), Some(-1), Some(2)));
    let podman = changed_limits_of_podman(&some).unwrap();
    assert_eq!(podman["memory"], json!({"limit": 1 << 20, "swap": 1 << 20}));
    assert_eq!(podman["cpu"], json!({"shares": 512, "period": 100_000, "quota": 50_000}));
}

#[test]
fn a_pod_has_a_hosts_file_of_its_own_unless_it_mounts_one() {
    let able = Able { copy: false, podman: true, minor: 44 };
    let mut spec = container_spec();
    let seen = |spec: &ContainerSpec| {
        let mut found = places(spec, &[], able).unwrap();
        found.add_hosts(std::path::Path::new("/state/hosts")).unwrap();
        found.mounted.into_iter().filter(|p| p.target == "/etc/hosts").map(|p| p.source).collect::<Vec<_>>()
    };
    assert_eq!(seen(&spec), [Source::Path("/state/hosts".into())]);
    spec.mounts.push(Mount {
        volume: "own".into(),
        source: "/own/hosts".into(),
        target: "/etc/hosts".into(),
        read_only: true,
        generated: false,
        propagation: None,
    });
    assert_eq!(seen(&spec), [Source::Path("/own/hosts".into())]);
}
