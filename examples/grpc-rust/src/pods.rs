//! The pods of all nodes, as processes.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::sync::{broadcast, watch};
use tonic::Status;
use vnode_proto::v1;

use crate::log::Log;

/// How long after its end a container is started again.
const RESTART: Duration = Duration::from_secs(1);

/// A change of a pod, for those who watch its node.
#[derive(Clone)]
pub struct Change {
    pub node_uid: String,
    pub status: v1::PodStatus,
}

pub struct Container {
    pub name: String,
    image: String,
    /// Program and arguments.
    words: Vec<String>,
    /// Where it runs, if the pod says so.
    pub folder: Option<String>,
    pub env: Vec<(String, String)>,
    pub state: core::ContainerState,
    last: Option<core::ContainerState>,
    restarts: i32,
    pub log: Arc<Log>,
    pub previous: Option<Arc<Log>>,
    pub pid: Option<Pid>,
}

pub struct Pod {
    pub reference: v1::PodRef,
    pub node_uid: String,
    pub start_time: Timestamp,
    restart_policy: String,
    pub containers: Vec<Container>,
    /// How long its processes have left, once it is to stop.
    stop: watch::Sender<Option<Duration>>,
}

impl Pod {
    pub fn status(&self) -> v1::PodStatus {
        let container = |c: &Container| core::ContainerStatus {
            name: c.name.clone(),
            image: c.image.clone(),
            ready: c.state.running.is_some(),
            started: Some(c.state.running.is_some()),
            restart_count: c.restarts,
            state: Some(c.state.clone()),
            last_state: c.last.clone(),
            ..core::ContainerStatus::default()
        };
        let status = core::PodStatus {
            start_time: Some(Time(self.start_time)),
            pod_ip: Some("127.0.0.1".into()),
            container_statuses: Some(self.containers.iter().map(container).collect()),
            ..core::PodStatus::default()
        };
        v1::PodStatus {
            pod: Some(self.reference.clone()),
            node_uid: self.node_uid.clone(),
            json: serde_json::to_vec(&status).unwrap_or_default().into(),
        }
    }

    fn should_restart(&self, code: i32) -> bool {
        let stopping = self.stop.borrow().is_some();
        !stopping && (self.restart_policy == "Always" || self.restart_policy == "OnFailure" && code != 0)
    }
}

/// All pods by uid.
pub struct Pods {
    pods: Mutex<HashMap<String, Pod>>,
    changes: broadcast::Sender<Change>,
}

impl Default for Pods {
    fn default() -> Self {
        Self { pods: Mutex::default(), changes: broadcast::Sender::new(1024) }
    }
}

fn invalid(field: String, message: &str) -> Status {
    let mut status = Status::invalid_argument(message);
    if let Ok(field) = field.parse() {
        status.metadata_mut().insert(vnode_proto::metadata::FIELD, field);
    }
    status
}

impl Pods {
    pub fn lock(&self) -> MutexGuard<'_, HashMap<String, Pod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// The statuses of a node's pods.
    pub fn of_node(&self, node_uid: &str) -> Vec<v1::PodStatus> {
        self.lock().values().filter(|pod| pod.node_uid == node_uid).map(Pod::status).collect()
    }

    /// Something of a pod, if this node has it.
    pub fn with<T>(
        &self,
        node_uid: &str,
        pod: Option<&v1::PodRef>,
        get: impl FnOnce(&mut Pod) -> T,
    ) -> Result<T, Status> {
        let uid = pod.map(|p| p.uid.as_str()).unwrap_or_default();
        let mut pods = self.lock();
        let found = pods.get_mut(uid).filter(|pod| pod.node_uid == node_uid);
        found.map(get).ok_or_else(|| Status::not_found(format!("there is no pod with uid {uid:?} on this node")))
    }

    /// Starts a pod, unless it is there.
    pub fn create(self: &Arc<Self>, node_uid: &str, pod: &v1::Pod) -> Result<(), Status> {
        let json: core::Pod = serde_json::from_slice(&pod.json)
            .map_err(|e| Status::invalid_argument(format!("the pod's JSON cannot be read: {e}")))?;
        let (meta, spec) = (json.metadata, json.spec.unwrap_or_default());
        let reference = v1::PodRef {
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.unwrap_or_default(),
            uid: meta.uid.unwrap_or_default(),
        };
        let mut containers = Vec::new();
        for (n, wanted) in spec.containers.into_iter().enumerate() {
            let given = pod.containers.get(&wanted.name).cloned().unwrap_or_default();
            if given.command.is_empty() {
                let message = "there are no images here, so a container needs a command";
                return Err(invalid(format!("spec.containers[{n}].command"), message));
            }
            containers.push(Container {
                name: wanted.name,
                image: wanted.image.unwrap_or_default(),
                words: given.command.into_iter().chain(given.args).collect(),
                folder: wanted.working_dir.filter(|folder| !folder.is_empty()),
                env: given.env.into_iter().map(|v| (v.name, v.value)).collect(),
                state: waiting("ContainerCreating"),
                last: None,
                restarts: 0,
                log: Arc::default(),
                previous: None,
                pid: None,
            });
        }
        let uid = reference.uid.clone();
        let count = containers.len();
        let new = Pod {
            reference,
            node_uid: node_uid.to_owned(),
            start_time: Timestamp::now(),
            restart_policy: spec.restart_policy.unwrap_or_else(|| "Always".into()),
            containers,
            stop: watch::Sender::new(None),
        };
        let mut pods = self.lock();
        if pods.contains_key(&uid) {
            return Ok(());
        }
        let stop = new.stop.subscribe();
        pods.insert(uid.clone(), new);
        drop(pods);
        for n in 0..count {
            tokio::spawn(self.clone().run(uid.clone(), n, stop.clone()));
        }
        Ok(())
    }

    /// Gives a pod's processes so long to end. A later call can only shorten it.
    pub fn stop(&self, node_uid: &str, pod: Option<&v1::PodRef>, grace: Duration) -> Result<(), Status> {
        self.with(node_uid, pod, |pod| {
            pod.stop.send_if_modified(|left| {
                let shorter = left.is_none_or(|left| grace < left);
                if shorter {
                    *left = Some(grace);
                }
                shorter
            });
        })
    }

    /// Kills and forgets a pod.
    pub fn remove(&self, node_uid: &str, pod: Option<&v1::PodRef>) {
        let uid = pod.map(|p| p.uid.as_str()).unwrap_or_default();
        let mut pods = self.lock();
        if pods.get(uid).is_some_and(|pod| pod.node_uid == node_uid)
            && let Some(pod) = pods.remove(uid)
        {
            // Its containers' tasks end, and kill what runs.
            pod.stop.send_replace(Some(Duration::ZERO));
        }
    }

    /// Changes a container and tells of it. `None` when the pod is no more.
    fn change<T>(&self, uid: &str, n: usize, change: impl FnOnce(&mut Container, bool) -> T, code: i32) -> Option<T> {
        let mut pods = self.lock();
        let pod = pods.get_mut(uid)?;
        let again = pod.should_restart(code);
        let result = change(pod.containers.get_mut(n)?, again);
        let change = Change { node_uid: pod.node_uid.clone(), status: pod.status() };
        drop(pods);
        // Nobody may be watching.
        let _ = self.changes.send(change);
        Some(result)
    }

    /// Runs a container until it is over for good.
    async fn run(self: Arc<Self>, uid: String, n: usize, mut stop: watch::Receiver<Option<Duration>>) {
        loop {
            let to_run = |c: &mut Container, _| (command(&c.words, c.folder.as_deref(), c.env.clone()), c.log.clone());
            let Some((process, log)) = self.change(&uid, n, to_run, 0) else { return };
            let started = Timestamp::now();
            let outcome = self.run_once(&uid, n, process, &log, &mut stop).await;
            log.end();
            let code = *outcome.as_ref().unwrap_or(&NOT_STARTED);
            let ended = ended(outcome, started);
            let again = self.change(
                &uid,
                n,
                |c, again| {
                    c.pid = None;
                    c.state = if again { waiting("CrashLoopBackOff") } else { ended.clone() };
                    c.last = again.then(|| ended.clone());
                    again
                },
                code,
            );
            if again != Some(true) {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(RESTART) => {}
                _ = stop.wait_for(Option::is_some) => {
                    self.change(&uid, n, |c, _| c.state = ended.clone(), code);
                    return;
                }
            }
            self.change(
                &uid,
                n,
                |c, _| {
                    c.restarts += 1;
                    c.previous = Some(std::mem::take(&mut c.log));
                },
                code,
            );
        }
    }

    /// Runs a container's process and returns its exit code.
    async fn run_once(
        &self,
        uid: &str,
        n: usize,
        mut command: Command,
        log: &Arc<Log>,
        stop: &mut watch::Receiver<Option<Duration>>,
    ) -> std::io::Result<i32> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let out = copy(child.stdout.take(), log.clone(), v1::LogSource::Stdout);
        let err = copy(child.stderr.take(), log.clone(), v1::LogSource::Stderr);
        let copying = tokio::spawn(async { tokio::join!(out, err) });
        let running = core::ContainerState {
            running: Some(core::ContainerStateRunning { started_at: Some(Time(Timestamp::now())) }),
            ..core::ContainerState::default()
        };
        let there = self.change(
            uid,
            n,
            |c, _| {
                c.state = running;
                c.pid = pid;
            },
            0,
        );
        let kill = |signal| {
            if let Some(pid) = pid {
                // It may have ended by itself.
                let _ = kill_process_group(pid, signal);
            }
        };
        if there.is_none() {
            kill(Signal::KILL);
        }
        let ended = loop {
            let grace = *stop.borrow_and_update();
            if grace.is_some() {
                kill(Signal::TERM);
            }
            tokio::select! {
                ended = child.wait() => break ended,
                () = async { match grace { Some(grace) => tokio::time::sleep(grace).await, None => std::future::pending().await } } => {
                    kill(Signal::KILL);
                    break child.wait().await;
                }
                Ok(()) = stop.changed() => {}
            }
        };
        // What it has left behind holds its output open.
        kill(Signal::KILL);
        let _ = copying.await;
        Ok(ended.map_or(255, |status| exit_code(&status)))
    }
}

/// 128 + n for signal n, as shells have it.
pub fn exit_code(status: &std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().or_else(|| status.signal().map(|n| 128 + n)).unwrap_or(255)
}

/// The exit code of what could not be started, as container runtimes have it.
const NOT_STARTED: i32 = 128;

/// The state of a container whose process has ended with a code, or could not be started.
fn ended(outcome: std::io::Result<i32>, started: Timestamp) -> core::ContainerState {
    let finished_at = Some(Time(Timestamp::now()));
    let terminated = match outcome {
        Ok(exit_code) => core::ContainerStateTerminated {
            exit_code,
            reason: Some(if exit_code == 0 { "Completed" } else { "Error" }.into()),
            started_at: Some(Time(started)),
            finished_at,
            ..core::ContainerStateTerminated::default()
        },
        Err(error) => core::ContainerStateTerminated {
            exit_code: NOT_STARTED,
            reason: Some("StartError".into()),
            message: Some(error.to_string()),
            finished_at,
            ..core::ContainerStateTerminated::default()
        },
    };
    core::ContainerState { terminated: Some(terminated), ..core::ContainerState::default() }
}

/// A command in a process group of its own, with nothing of our own environment but the path.
pub fn command(words: &[String], folder: Option<&str>, env: Vec<(String, String)>) -> Command {
    let (program, arguments) = words.split_first().map_or(("", &[][..]), |(p, a)| (p.as_str(), a));
    let mut command = Command::new(program);
    command.current_dir(folder.unwrap_or("."));
    command.args(arguments).env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path))).envs(env);
    command.process_group(0).kill_on_drop(true);
    command
}

fn waiting(reason: &str) -> core::ContainerState {
    core::ContainerState {
        waiting: Some(core::ContainerStateWaiting { reason: Some(reason.into()), message: None }),
        ..core::ContainerState::default()
    }
}

async fn copy(from: Option<impl AsyncRead + Unpin>, log: Arc<Log>, source: v1::LogSource) {
    let Some(from) = from else { return };
    let (mut lines, mut line) = (BufReader::new(from), Vec::new());
    while lines.read_until(b'\n', &mut line).await.is_ok_and(|n| n > 0) {
        log.push(source, std::mem::take(&mut line));
    }
}
