//! Checks: what runs in a pod runs as its author wrote it, and sees what it should.

use futures::FutureExt as _;
use serde_json::json;

use super::super::{PodObservation, Result};
use super::pods::{ContainerPlan, PodPlan, ROOT};
use super::seen::{end, exit_code, find, of, waits_for};
use super::server;
use super::suite::{Failure, Suite, ensure, same};
use super::{Check, Need, PodFeature};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "a_container_that_ends_is_reported_with_its_exit_code",
        hint: "state.terminated has the exit code of the container's process, and 128 + n when signal n ended it",
        needs: &[Need::Commands],
        run: |s| exit_codes(s).boxed_local(),
    },
    Check {
        name: "the_environment_arrives_unchanged_and_in_order",
        hint: "take it from ResolvedPod::containers, not from the pod's spec: values may have any character but NUL, later \
               ones may be needed before earlier ones, and those of Secrets are only there",
        needs: &[Need::Commands, Need::Logs],
        run: |s| environment(s).boxed_local(),
    },
    Check {
        name: "arguments_arrive_unchanged",
        hint: "command and args are lists of words: never join them into one line for a shell",
        needs: &[Need::Commands, Need::Logs],
        run: |s| arguments(s).boxed_local(),
    },
    Check {
        name: "a_container_runs_in_its_working_directory",
        hint: "workingDir replaces the image's own; it is in the pod's spec, which ResolvedPod::pod has",
        needs: &[Need::Commands, Need::Logs],
        run: |s| working_dir(s).boxed_local(),
    },
    Check {
        name: "the_address_of_a_pod_is_in_the_environment_that_asks_for_it",
        hint: "call ResolvedContainer::with_pod_ips when the addresses are known, before the container is started",
        needs: &[Need::Commands, Need::Logs, Need::Feature(PodFeature::PodIpInEnvironment)],
        run: |s| own_address(s).boxed_local(),
    },
    Check {
        name: "containers_of_a_pod_reach_each_other_on_localhost",
        hint: "the containers of a pod share one network",
        needs: &[Need::Commands, Need::Exec, Need::Feature(PodFeature::MultipleContainers)],
        run: |s| localhost(s).boxed_local(),
    },
    Check {
        name: "a_hostname_of_its_own_is_what_containers_see",
        hint: "spec.hostname, or the pod's name, is the machine's name; with subdomain, /etc/hosts has the long one",
        needs: &[Need::Commands, Need::Logs, Need::Feature(PodFeature::Hostname)],
        run: |s| hostname(s).boxed_local(),
    },
    Check {
        name: "host_aliases_are_in_the_hosts_file",
        hint: "spec.hostAliases are lines of /etc/hosts",
        needs: &[Need::Commands, Need::Logs, Need::Feature(PodFeature::HostAliases)],
        run: |s| host_aliases(s).boxed_local(),
    },
    Check {
        name: "run_as_non_root_keeps_root_out",
        hint: "runAsNonRoot with user 0 is not started: its container waits with CreateContainerConfigError and says why",
        needs: &[Need::Commands, Need::Feature(PodFeature::RunAsUser)],
        run: |s| non_root(s).boxed_local(),
    },
    Check {
        name: "a_container_that_takes_more_memory_than_it_may_is_killed",
        hint: "resources.limits.memory is enforced by the kernel; exit code 137",
        needs: &[Need::Commands, Need::Feature(PodFeature::ResourceLimits)],
        run: |s| memory(s).boxed_local(),
    },
];

async fn exit_codes(s: &Suite<'_>) -> Result<(), Failure> {
    for (script, code) in [("exit 7", 7), ("exit 0", 0)] {
        let (_, seen) = s.run_to_end(PodPlan::script("exits", script).restart("Never")).await?;
        same(exit_code(&seen), Some(code), format!("the exit code of {script:?}"))?;
        let finished = seen.containers.first().and_then(end).is_some_and(|t| t.finished_at.is_some());
        ensure(finished, "a container that ended has the time of its end")?;
    }
    // Which signals the first process of a container gets is not for it to say.
    let script = "[ $$ = 1 ] && exit 137; kill -KILL $$; sleep 1";
    let (_, seen) = s.run_to_end(PodPlan::script("signalled", script).restart("Never")).await?;
    same(exit_code(&seen), Some(137), "the exit code of a container that signal 9 ended")
}

async fn environment(s: &Suite<'_>) -> Result<(), Failure> {
    let odd = "a \"b\" 'c' $HOME $(X) \\n ü;|&`x` %s";
    let lines = "one\ntwo";
    let script = "printf '[%s]' \"$ODD\" \"$LINES2\" \"$EMPTY\" \"${EMPTY+set}\" \"$HIDDEN\"; echo; sleep 3600";
    let main = ContainerPlan::new("main")
        .script(script)
        .env("ODD", odd, false)
        .env("LINES2", lines, false)
        .env("EMPTY", "", false)
        .env("HIDDEN", "from a secret", true);
    let (pod, _) = s.start(PodPlan::new("environment").containers(vec![main])).await?;
    let wanted = format!("[{odd}][{lines}][][set][from a secret]");
    s.wait_log(&pod.pod_ref(), "with the environment", |text| text.contains(&wanted)).await.map(drop)
}

async fn arguments(s: &Suite<'_>) -> Result<(), Failure> {
    let words = ["two words", "", "\"quoted\"", "it's", "$HOME", "*", "ü", "-n", "a\tb"];
    let main = ContainerPlan::new("main")
        .script("for word in \"$@\"; do printf '[%s]' \"$word\"; done; echo; sleep 3600")
        .args(&[&["sh"], &words[..]].concat());
    let (pod, _) = s.start(PodPlan::new("arguments").containers(vec![main])).await?;
    let wanted: String = words.iter().map(|w| format!("[{w}]")).collect();
    s.wait_log(&pod.pod_ref(), "with the arguments", |text| text.contains(&wanted)).await.map(drop)
}

async fn working_dir(s: &Suite<'_>) -> Result<(), Failure> {
    let main =
        ContainerPlan::new("main").script("echo \"in [$(pwd)]\"; sleep 3600").with(json!({"workingDir": "/tmp"}));
    let (pod, _) = s.start(PodPlan::new("working-dir").containers(vec![main])).await?;
    s.wait_log(&pod.pod_ref(), "with its folder", |text| text.contains("in [/tmp]")).await.map(drop)
}

async fn own_address(s: &Suite<'_>) -> Result<(), Failure> {
    let main = ContainerPlan::new("main").script("echo \"ip [$OWN]\"; sleep 3600").env_of_pod_ip("OWN");
    let (pod, _) = s.start(PodPlan::new("own-address").containers(vec![main])).await?;
    let seen = s.wait_asking(&pod.pod_ref(), "with an address", |o| !o.pod_ips.is_empty()).await?;
    let wanted = seen.pod_ips.first().map(|ip| format!("ip [{ip}]")).unwrap_or_default();
    s.wait_log(&pod.pod_ref(), &format!("with {wanted}"), |text| text.contains(&wanted)).await.map(drop)
}

async fn localhost(s: &Suite<'_>) -> Result<(), Failure> {
    let port = server::port();
    let plan = PodPlan::new("localhost").restart("Never");
    let plan = plan.containers(vec![server::container("main", port), ContainerPlan::new("asks")]);
    let (pod, _) = s.start(plan).await?;
    let fetched = s.run(&pod.pod_ref(), "asks", &server::fetch(port)).await;
    server::claimed(s, &pod.pod_ref(), "main").await?;
    ensure(fetched?.contains("served"), "what one container serves another one gets")
}

async fn hostname(s: &Suite<'_>) -> Result<(), Failure> {
    let script = format!("echo \"name [$(hostname)]\"; cat {ROOT}/etc/hosts; sleep 3600");
    let plan = PodPlan::script("hostname", &script).with(json!({"hostname": "front", "subdomain": "web"}));
    let (pod, _) = s.start(plan).await?;
    let holds = |text: &str| text.contains("name [front]") && text.contains("front.web.conformance.svc.");
    s.wait_log(&pod.pod_ref(), "with its names", holds).await.map(drop)
}

async fn host_aliases(s: &Suite<'_>) -> Result<(), Failure> {
    let aliases = json!({"hostAliases": [{"ip": "10.1.2.3", "hostnames": ["alpha", "beta"]}]});
    let plan = PodPlan::script("aliases", &format!("cat {ROOT}/etc/hosts; sleep 3600")).with(aliases);
    let (pod, _) = s.start(plan).await?;
    let named = |line: &str| line.split_whitespace().eq(["10.1.2.3", "alpha", "beta"]);
    s.wait_log(&pod.pod_ref(), "with the aliases", |text| text.lines().any(named)).await.map(drop)
}

async fn non_root(s: &Suite<'_>) -> Result<(), Failure> {
    let root = json!({"securityContext": {"runAsNonRoot": true, "runAsUser": 0}});
    let plan = PodPlan::new("root").with(root);
    let refused = |o: &PodObservation| of(o, "main", |c| waits_for(c) == Some("CreateContainerConfigError"));
    let (_, seen) = s.begin(plan, "waiting with CreateContainerConfigError", refused).await?;
    let said = find(&seen, "main").and_then(|c| c.state.as_ref()?.waiting.as_ref()?.message.as_deref());
    ensure(said.is_some_and(|m| m.contains("root")), format!("it is said why the container may not run: {said:?}"))
}

async fn memory(s: &Suite<'_>) -> Result<(), Failure> {
    // Where nothing is enforced, this is soon over and does no harm.
    let main = ContainerPlan::new("main")
        .script("exec dd if=/dev/zero of=/dev/null bs=200000000 count=1")
        .with(json!({"resources": {"limits": {"memory": "32Mi"}}}));
    let (_, seen) = s.run_to_end(PodPlan::new("greedy").restart("Never").containers(vec![main])).await?;
    same(exit_code(&seen), Some(137), "the exit code of a container that took too much memory")
}
