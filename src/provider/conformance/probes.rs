//! Checks: probes of all kinds, and what comes of them.

use futures::FutureExt as _;
use serde_json::{Value, json};

use super::super::{PodObservation, Result};
use super::pods::{ContainerPlan, DEAF, POLITE, PodPlan};
use super::seen::{container, end_before, exit_code, is_running, of, runs};
use super::suite::{Failure, Suite, ensure, must, same};
use super::{Check, Need, PodFeature, server};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "a_readiness_probe_makes_a_container_ready_and_unready",
        hint: "ready follows the readiness probe both ways, and nothing is restarted for it",
        needs: &[
            Need::Commands,
            Need::Exec,
            Need::Feature(PodFeature::ReadinessProbes),
            Need::Feature(PodFeature::ExecProbes),
        ],
        run: |s| readiness(s).boxed_local(),
    },
    Check {
        name: "a_liveness_probe_that_fails_has_its_container_started_again",
        hint: "after failureThreshold failures the container is ended as in a stop and the restart policy counts; the others \
               run on",
        needs: &[
            Need::Commands,
            Need::Exec,
            Need::Feature(PodFeature::LivenessProbes),
            Need::Feature(PodFeature::ExecProbes),
            Need::Feature(PodFeature::RestartPolicy),
            Need::Feature(PodFeature::MultipleContainers),
        ],
        run: |s| liveness(s).boxed_local(),
    },
    Check {
        name: "a_liveness_probe_that_fails_ends_what_is_never_restarted",
        hint: "under restartPolicy Never the container is over, with the exit code that it chose",
        needs: &[
            Need::Commands,
            Need::Feature(PodFeature::LivenessProbes),
            Need::Feature(PodFeature::ExecProbes),
            Need::Feature(PodFeature::GracePeriod),
        ],
        run: |s| liveness_never(s).boxed_local(),
    },
    Check {
        name: "a_liveness_probe_may_have_a_grace_of_its_own",
        hint: "livenessProbe.terminationGracePeriodSeconds takes the place of the pod's when the probe has failed",
        needs: &[
            Need::Commands,
            Need::Feature(PodFeature::LivenessProbes),
            Need::Feature(PodFeature::ExecProbes),
            Need::Feature(PodFeature::GracePeriod),
        ],
        run: |s| own_grace(s).boxed_local(),
    },
    Check {
        name: "a_probe_that_takes_too_long_has_failed",
        hint: "timeoutSeconds bounds a probe, a command that hangs included",
        needs: &[Need::Commands, Need::Feature(PodFeature::LivenessProbes), Need::Feature(PodFeature::ExecProbes)],
        run: |s| slow(s).boxed_local(),
    },
    Check {
        name: "nothing_else_is_probed_before_the_startup_probe_has_succeeded",
        hint: "until then started and ready are false, and neither liveness nor readiness is asked for",
        needs: &[
            Need::Commands,
            Need::Exec,
            Need::Feature(PodFeature::StartupProbes),
            Need::Feature(PodFeature::ReadinessProbes),
            Need::Feature(PodFeature::LivenessProbes),
            Need::Feature(PodFeature::ExecProbes),
        ],
        run: |s| startup(s).boxed_local(),
    },
    Check {
        name: "a_startup_probe_that_never_succeeds_has_its_container_started_again",
        hint: "after failureThreshold failures it is as with a liveness probe",
        needs: &[
            Need::Commands,
            Need::Feature(PodFeature::StartupProbes),
            Need::Feature(PodFeature::ExecProbes),
            Need::Feature(PodFeature::RestartPolicy),
        ],
        run: |s| never_up(s).boxed_local(),
    },
    Check {
        name: "an_http_probe_asks_the_container_and_looks_at_the_answer",
        hint: "httpGet goes to the pod, to a port by number or by name; 200 to 399 is success",
        needs: &[
            Need::Commands,
            Need::Feature(PodFeature::ReadinessProbes),
            Need::Feature(PodFeature::HttpProbes),
            Need::Feature(PodFeature::MultipleContainers),
        ],
        run: |s| http(s).boxed_local(),
    },
    Check {
        name: "a_tcp_probe_asks_whether_a_port_is_open",
        hint: "tcpSocket connects to the pod and does no more",
        needs: &[
            Need::Commands,
            Need::Feature(PodFeature::ReadinessProbes),
            Need::Feature(PodFeature::TcpProbes),
            Need::Feature(PodFeature::MultipleContainers),
        ],
        run: |s| tcp(s).boxed_local(),
    },
    Check {
        name: "a_grpc_probe_without_a_server_fails",
        hint: "grpc asks the standard health service on the pod's port",
        needs: &[
            Need::Commands,
            Need::Feature(PodFeature::ReadinessProbes),
            Need::Feature(PodFeature::GrpcProbes),
            Need::Feature(PodFeature::MultipleContainers),
        ],
        run: |s| grpc(s).boxed_local(),
    },
];

/// A port that is reserved, so that nothing serves on it.
const CLOSED: i32 = 1;

/// A probe by a script, each second; one probe may take as long as a slow machine needs.
pub(super) fn exec(script: &str, failures: i32) -> Value {
    every_second(json!({"exec": {"command": ["sh", "-c", script]}}), failures)
}

fn every_second(mut probe: Value, failures: i32) -> Value {
    probe["periodSeconds"] = json!(1);
    probe["timeoutSeconds"] = json!(20);
    probe["failureThreshold"] = json!(failures);
    probe
}

fn main(script: &str, probes: Value) -> ContainerPlan {
    ContainerPlan::new("main").script(script).with(probes)
}

fn ready(o: &PodObservation, name: &str) -> bool {
    of(o, name, |c| runs(c) && c.ready)
}

fn unready(o: &PodObservation, name: &str) -> bool {
    of(o, name, |c| runs(c) && !c.ready)
}

fn restarted(o: &PodObservation) -> bool {
    of(o, "main", |c| c.restart_count >= 1)
}

async fn readiness(s: &Suite<'_>) -> Result<(), Failure> {
    let note = s.note();
    let probe = exec(&format!("test -e {note}"), 1);
    let plan = PodPlan::new("readiness").containers(vec![main(POLITE, json!({"readinessProbe": probe}))]);
    let (pod, _) = s.begin(plan, "running, not ready", |o| unready(o, "main")).await?;
    let pod = pod.pod_ref();
    s.stays(&pod, 2, "it is not ready before its probe has succeeded", |o| unready(o, "main")).await?;
    s.run(&pod, "main", &format!("touch {note}")).await?;
    s.wait(&pod, "ready", |o| ready(o, "main")).await?;
    s.run(&pod, "main", &format!("rm {note}")).await?;
    let seen = s.wait(&pod, "not ready any more", |o| unready(o, "main")).await?;
    same(container(&seen, "main")?.restart_count, 0, "restarts")
}

async fn liveness(s: &Suite<'_>) -> Result<(), Failure> {
    let note = s.note();
    let probe = exec(&format!("! test -e {note}"), 1);
    let script = format!("rm -f {note}; {POLITE}");
    let plan = PodPlan::new("liveness");
    let plan = plan.containers(vec![main(&script, json!({"livenessProbe": probe})), ContainerPlan::new("beside")]);
    let (pod, _) = s.start(plan).await?;
    let pod = pod.pod_ref();
    s.stays(&pod, 2, "a container whose probe succeeds runs on", |o| is_running(o) && !restarted(o)).await?;
    s.run(&pod, "main", &format!("touch {note}")).await?;
    let seen = s.wait(&pod, "running again", |o| is_running(o) && restarted(o)).await?;
    ensure(end_before(container(&seen, "main")?).is_some(), "lastState says how the run before has ended")?;
    same(container(&seen, "beside")?.restart_count, 0, "restarts of the container beside it")
}

async fn liveness_never(s: &Suite<'_>) -> Result<(), Failure> {
    // Late enough for the trap to be there.
    let mut probe = exec("exit 1", 1);
    probe["initialDelaySeconds"] = json!(3);
    let plan = PodPlan::new("liveness-never").restart("Never");
    let plan = plan.containers(vec![main(POLITE, json!({"livenessProbe": probe}))]);
    let (_, seen) = s.run_to_end(plan).await?;
    same(container(&seen, "main")?.restart_count, 0, "restarts")?;
    same(exit_code(&seen), Some(6), "the exit code of a container that ends in its own way")
}

async fn own_grace(s: &Suite<'_>) -> Result<(), Failure> {
    let mut probe = exec("exit 1", 1);
    probe["initialDelaySeconds"] = json!(2);
    probe["terminationGracePeriodSeconds"] = json!(1);
    let plan = PodPlan::new("own-grace").restart("Never").with(json!({"terminationGracePeriodSeconds": 3600}));
    let (_, seen) = s.run_to_end(plan.containers(vec![main(DEAF, json!({"livenessProbe": probe}))])).await?;
    same(exit_code(&seen), Some(137), "the exit code of a container that was killed")
}

async fn slow(s: &Suite<'_>) -> Result<(), Failure> {
    let mut probe = exec("sleep 3600", 1);
    probe["timeoutSeconds"] = json!(1);
    let plan = PodPlan::new("slow").restart("Never");
    s.run_to_end(plan.containers(vec![main(POLITE, json!({"livenessProbe": probe}))])).await.map(drop)
}

async fn startup(s: &Suite<'_>) -> Result<(), Failure> {
    let note = s.note();
    let test = format!("test -e {note}");
    let probes = json!({
        "startupProbe": exec(&test, 1000),
        "livenessProbe": exec(&test, 1),
        "readinessProbe": exec("exit 0", 1),
    });
    let plan = PodPlan::new("startup").containers(vec![main(POLITE, probes)]);
    let starting = |o: &PodObservation| unready(o, "main") && of(o, "main", |c| c.started == Some(false));
    let (pod, _) = s.begin(plan, "running, not started", starting).await?;
    let pod = pod.pod_ref();
    let waits = |o: &PodObservation| starting(o) && !restarted(o);
    s.stays(&pod, 3, "it has neither started nor is it probed", waits).await?;
    s.run(&pod, "main", &format!("touch {note}")).await?;
    let started = |o: &PodObservation| ready(o, "main") && of(o, "main", |c| c.started == Some(true));
    let seen = s.wait(&pod, "started and ready", started).await?;
    same(container(&seen, "main")?.restart_count, 0, "restarts")
}

async fn never_up(s: &Suite<'_>) -> Result<(), Failure> {
    let probe = exec("exit 1", 2);
    let plan = PodPlan::new("never-up").containers(vec![main(POLITE, json!({"startupProbe": probe}))]);
    s.begin(plan, "started again", restarted).await.map(drop)
}

/// A pod with a server whose probe is to succeed, and containers whose probes are to fail.
async fn asked(
    s: &Suite<'_>,
    name: &'static str,
    port: u16,
    good: Value,
    bad: Vec<(&'static str, Value)>,
) -> Result<(), Failure> {
    let readiness = |probe: Value| json!({"readinessProbe": every_second(probe, 1)});
    let mut containers = vec![server::container("main", port).with(readiness(good))];
    let names: Vec<_> = bad.iter().map(|(name, _)| *name).collect();
    containers.extend(bad.into_iter().map(|(name, probe)| ContainerPlan::new(name).with(readiness(probe))));
    let pod = s.pod(PodPlan::new(name).restart("Never").containers(containers));
    must("create a pod", s.provider().create_pod(&pod).await)?;
    let pod = pod.pod_ref();
    let all = |o: &PodObservation| ready(o, "main") && is_running(o);
    server::wait(s, &pod, "main", "running, its server ready", all).await?;
    let others = |o: &PodObservation| names.iter().all(|name| unready(o, name));
    s.stays(&pod, 3, "a container whose probe fails is not ready", others).await
}

async fn http(s: &Suite<'_>) -> Result<(), Failure> {
    let port = server::port();
    let get = |path: &str, port: Value| json!({"httpGet": {"path": path, "port": port}});
    let bad = vec![("missing", get("/no/such/page", json!(port))), ("closed", get("/", json!(CLOSED)))];
    asked(s, "http", port, get("/", json!("web")), bad).await
}

async fn tcp(s: &Suite<'_>) -> Result<(), Failure> {
    let port = server::port();
    let open = |port: Value| json!({"tcpSocket": {"port": port}});
    asked(s, "tcp", port, open(json!("web")), vec![("closed", open(json!(CLOSED)))]).await
}

async fn grpc(s: &Suite<'_>) -> Result<(), Failure> {
    let probe = json!({"readinessProbe": every_second(json!({"grpc": {"port": CLOSED}}), 1)});
    let plan =
        PodPlan::new("grpc").containers(vec![ContainerPlan::new("main"), ContainerPlan::new("closed").with(probe)]);
    let (pod, _) = s.begin(plan, "running, one container ready", |o| is_running(o) && ready(o, "main")).await?;
    s.stays(&pod.pod_ref(), 3, "a container whose probe fails is not ready", |o| unready(o, "closed")).await
}
