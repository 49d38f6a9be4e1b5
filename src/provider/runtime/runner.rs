//! The task of one pod: brings inputs to the machine and starts what it asks for.
//!
//! Whatever takes time is a future in one of two sets, so that a pod is one task whatever it has of containers and
//! probes, and dropping the task drops all of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::act::{Acts, VolumeWriter};
use super::core::{ContainerView, Core, Entry, Message, View};
use super::engine::{ContainerRef, ContainerState, Exit, Listing};
use super::machine::plan::Plan;
use super::machine::state::{PodState, Stage};
use super::machine::{Action, Input, Machine};
use super::spec::PodDir;
use super::{files, record};
use crate::provider::{EventType, ProviderError, ResolvedPod, Result};

/// How long the removal of a pod waits for what the engine is making of it.
const MAKING: Duration = Duration::from_secs(10);

/// What a future of the sets has come to.
pub(super) enum Done {
    Input(Input),
    Nothing,
    Removed(Result<()>),
    /// What the engine has, for a pod that was made up.
    Listed(Result<Listing>),
}

pub(super) struct Runner {
    core: Arc<Core>,
    entry: Arc<Entry>,
    pod: Arc<ResolvedPod>,
    writer: Arc<VolumeWriter>,
    machine: Machine,
    dir: PodDir,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    /// What makes something at the engine, which may go on with it when nobody waits any more.
    making: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Ends of containers that came before the answer to their start.
    early: HashMap<(usize, u32), Exit>,
    saved: Option<PodState>,
    synthetic: bool,
    removing: Vec<oneshot::Sender<Result<()>>>,
}

/// What a pod's task begins with.
pub(super) struct Start {
    pub pod: ResolvedPod,
    pub machine: Machine,
    pub inputs: Vec<Input>,
    pub synthetic: bool,
    /// Told when the pod is written down.
    pub accepted: Option<oneshot::Sender<Result<()>>>,
}

impl Runner {
    /// Takes a pod into the table and starts its task; false when it is there already.
    pub fn spawn(core: &Arc<Core>, start: Start) -> bool {
        let reference = start.pod.pod_ref();
        let scheme = core.engine().scheme();
        let view = view_of(&start.machine, scheme, start.synthetic);
        let Some((entry, receiver)) = core.insert(reference.clone(), view) else { return false };
        let pod = Arc::new(start.pod);
        let runner = Self {
            dir: core.pod_dir(&reference.uid),
            core: core.clone(),
            entry,
            writer: VolumeWriter::new(pod.clone()),
            pod,
            machine: start.machine,
            work: FuturesUnordered::new(),
            making: FuturesUnordered::new(),
            early: HashMap::new(),
            saved: None,
            synthetic: start.synthetic,
            removing: Vec::new(),
        };
        let stop = core.stop.clone();
        let (inputs, accepted) = (start.inputs, start.accepted);
        tokio::spawn(async move { stop.run_until_cancelled(runner.run(receiver, inputs, accepted)).await });
        true
    }

    async fn run(
        mut self,
        mut messages: mpsc::Receiver<Message>,
        inputs: Vec<Input>,
        accepted: Option<oneshot::Sender<Result<()>>>,
    ) {
        if let Some(accepted) = accepted {
            let saved = self.save().await;
            let failed = saved.is_err();
            // The caller may have given up waiting; then it asks again.
            let _ = accepted.send(saved);
            if failed {
                self.core.forget(&self.entry);
                return;
            }
        }
        for input in inputs {
            self.input(input);
        }
        self.input(Input::Tick);
        loop {
            self.settle().await;
            let now = self.core.now();
            let wait = self.machine.wake().map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
            tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => self.message(message),
                    None => return,
                },
                Some(done) = self.work.next(), if !self.work.is_empty() => {
                    if self.done(done).await {
                        return;
                    }
                }
                // These are never the pod's end.
                Some(done) = self.making.next(), if !self.making.is_empty() => {
                    self.done(done).await;
                }
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => self.input(Input::Tick),
            }
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Stop(grace) => self.input(Input::Stop { grace }),
            Message::Sandbox(ips) => self.input(Input::SandboxChanged(ips)),
            Message::State(container, ContainerState::Exited(exit)) => self.exited(&container, exit),
            Message::State(..) => {}
            Message::Missing(container) => {
                let exit = Exit {
                    code: 137,
                    signal: None,
                    started_at: None,
                    finished_at: self.core.now(),
                    oom_killed: false,
                    reason: Some("ContainerStatusUnknown".into()),
                    message: Some("The container could not be located; it may have been removed at the engine".into()),
                };
                self.exited(&container, exit);
            }
            Message::Update(pod) if self.synthetic => {
                self.set_pod(*pod);
                let engine = self.core.engine();
                self.work.push(Box::pin(async move { Done::Listed(engine.list().await) }));
            }
            Message::Update(pod) => {
                let fresh = !pod.volumes.is_empty();
                self.adopt_spec(*pod);
                if fresh {
                    let acts = self.acts();
                    self.work.push(Box::pin(async move { acts.refresh(Vec::new(), Vec::new()).await }));
                }
                let plan = Plan::of(&self.pod.pod);
                let actions = self.machine.replan(plan, self.core.now());
                self.perform(actions);
            }
            Message::Volumes(pod, changed) => {
                self.adopt_spec(*pod);
                let acts = self.acts();
                let running: Vec<_> = view_of(&self.machine, "", false).containers;
                let running = running.into_iter().filter(|c| c.alive).filter_map(|c| c.current).collect();
                self.work.push(Box::pin(async move { acts.refresh(changed, running).await }));
            }
            Message::Remove(reply) => {
                self.removing.push(reply);
                if self.removing.len() > 1 {
                    return;
                }
                // What is under way for the pod ends with it, but what is being made has to be there to be removed.
                self.work.clear();
                let making = std::mem::take(&mut self.making);
                let (engine, dir, reference) = (self.core.engine(), self.dir.clone(), self.entry.reference.clone());
                self.work.push(Box::pin(async move {
                    let _ = timeout(MAKING, making.for_each(|_| std::future::ready(()))).await;
                    Done::Removed(super::act::remove(&*engine, &reference, dir).await)
                }));
            }
        }
    }

    /// The agent knows the pod's newest spec and environment; what it leaves out stays.
    fn adopt_spec(&mut self, mut pod: ResolvedPod) {
        let waited: Vec<String> =
            self.pod.unresolved.keys().filter(|c| !pod.unresolved.contains_key(*c)).cloned().collect();
        if pod.volumes.is_empty() {
            pod.volumes.clone_from(&self.pod.volumes);
        }
        if pod.containers.is_empty() {
            pod.containers.clone_from(&self.pod.containers);
        }
        self.set_pod(pod);
        self.saved = None;
        for c in waited.iter().filter_map(|name| self.machine.plan.index(name)).collect::<Vec<_>>() {
            self.input(Input::Configured { c });
        }
    }

    fn set_pod(&mut self, pod: ResolvedPod) {
        self.pod = Arc::new(pod);
        self.writer.set(self.pod.clone());
    }

    /// True when the pod is gone.
    async fn done(&mut self, done: Done) -> bool {
        match done {
            Done::Nothing => {}
            Done::Input(input) => {
                let early = match &input {
                    Input::Started { c, attempt, result: Ok(_) } => {
                        self.early.remove(&(*c, *attempt)).map(|e| (*c, *attempt, e))
                    }
                    _ => None,
                };
                self.input(input);
                if let Some((c, attempt, exit)) = early {
                    self.read_last_words(c, attempt, exit);
                }
            }
            Done::Listed(Ok(listing)) => self.become_real(&listing),
            Done::Listed(Err(_)) => {
                let engine = self.core.engine();
                self.work.push(Box::pin(async move {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    Done::Listed(engine.list().await)
                }));
            }
            Done::Removed(result) => {
                let gone = result.is_ok();
                if gone {
                    self.core.forget(&self.entry);
                }
                let text = result.err().map(|e| e.to_string());
                if let Some(text) = &text {
                    let said = format!("error killing pod: {text}");
                    self.core.tell(&self.entry.reference, None, EventType::Warning, "FailedKillPod", said);
                }
                for reply in self.removing.drain(..) {
                    // The caller may have given up waiting; then it asks again.
                    let _ = reply.send(text.clone().map_or(Ok(()), |t| Err(ProviderError::unavailable(t))));
                }
                return gone;
            }
        }
        false
    }

    /// The agent has brought the pod that so far was made up from what the engine had.
    fn become_real(&mut self, listing: &Listing) {
        if !std::mem::take(&mut self.synthetic) {
            return;
        }
        let stopping = self.machine.state.stopping;
        let (sandbox, found) = of_pod(listing, &self.entry.reference.uid);
        let plan = Plan::of(&self.pod.pod);
        let (machine, inputs) = Machine::resume(plan, None, sandbox.as_ref(), &found, self.core.now());
        self.machine = machine;
        self.machine.state.stopping = stopping;
        for input in inputs {
            self.input(input);
        }
        self.input(Input::Tick);
    }

    fn exited(&mut self, container: &ContainerRef, exit: Exit) {
        let Some(c) = self.machine.plan.index(&container.name) else { return };
        let run = &self.machine.state.containers[c];
        if run.stage == Stage::Starting && run.runs == container.attempt {
            self.early.insert((c, container.attempt), exit);
        } else if run.is_alive() && run.attempt() == container.attempt {
            self.read_last_words(c, container.attempt, exit);
        }
    }

    fn read_last_words(&mut self, c: usize, attempt: u32, exit: Exit) {
        let acts = self.acts();
        let container = self.container(c, attempt);
        self.work.push(Box::pin(async move { acts.last_words(c, container, exit).await }));
    }

    fn input(&mut self, input: Input) {
        if self.removing.is_empty() {
            let actions = self.machine.next(input, self.core.now());
            self.perform(actions);
        }
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            let acts = self.acts();
            let makes = matches!(action, Action::CreateSandbox | Action::Start { .. });
            let future: BoxFuture<'static, Done> = match action {
                Action::Event { field, kind, reason, message } => {
                    self.core.tell(&self.entry.reference, field, kind, reason, message);
                    continue;
                }
                Action::CreateSandbox => Box::pin(acts.sandbox()),
                Action::EnsureImage { c } => {
                    let container = &self.machine.plan.containers[c];
                    Box::pin(acts.image(c, container.name.clone(), container.field.clone()))
                }
                Action::Start { c, attempt } => {
                    let image_id = self.machine.state.containers[c].image_id.clone();
                    let container = self.container(c, attempt);
                    Box::pin(acts.start(c, container, image_id, self.machine.state.ips.clone()))
                }
                Action::PostStart { c, attempt } => Box::pin(acts.post_start(c, self.container(c, attempt))),
                Action::PreStop { c, attempt, within } => {
                    Box::pin(acts.pre_stop(c, self.container(c, attempt), within))
                }
                Action::Probe { c, attempt, kind } => Box::pin(acts.probe(c, self.container(c, attempt), kind)),
                Action::Signal { c, attempt, signal } => Box::pin(acts.signal(self.container(c, attempt), signal)),
                Action::Resize { c, attempt, resources } => {
                    Box::pin(acts.resize(c, self.container(c, attempt), resources))
                }
                Action::Measure => Box::pin(acts.measure()),
                Action::Remove { c, attempt } => Box::pin(acts.remove_attempt(self.container(c, attempt))),
            };
            if makes { &self.making } else { &self.work }.push(future);
        }
    }

    fn acts(&self) -> Acts {
        Acts {
            core: self.core.clone(),
            pod: self.pod.clone(),
            writer: self.writer.clone(),
            dir: self.dir.clone(),
            ip: self.machine.state.ips.first().copied(),
        }
    }

    fn container(&self, c: usize, attempt: u32) -> ContainerRef {
        let run = &self.machine.state.containers[c];
        // The engine's id is known of the last one only; attempts say enough for the others.
        let id = if run.runs > 0 && run.attempt() == attempt { run.id.clone() } else { String::new() };
        ContainerRef { pod: self.entry.reference.clone(), name: run.name.as_str().into(), attempt, id }
    }

    /// Writes down what changed, then tells it: what is told survives a restart.
    async fn settle(&mut self) {
        if !self.removing.is_empty() {
            return;
        }
        if !self.synthetic
            && self.saved.as_ref().is_none_or(|saved| *saved != self.machine.state.durable())
            && let Err(error) = self.save().await
        {
            tracing::warn!(pod = %self.entry.reference, %error, "a pod's record could not be written");
        }
        let view = view_of(&self.machine, self.core.engine().scheme(), self.synthetic);
        let changed = self.entry.view().observation != view.observation;
        let observation = changed.then(|| view.observation.clone());
        self.entry.set_view(view);
        if let Some(observation) = observation {
            self.core.setup().notifier.changed(observation);
        }
    }

    async fn save(&mut self) -> Result<()> {
        let state = self.machine.state.durable();
        let dir = &self.dir.0;
        let write = async {
            tokio::fs::create_dir_all(dir).await?;
            record::save(dir, &self.pod, &state).await
        };
        write.await.map_err(|e| files::failed("writing the record in", dir, e))?;
        self.saved = Some(state);
        Ok(())
    }
}

/// What a listing has of one pod.
pub(super) fn of_pod(
    listing: &Listing,
    uid: &str,
) -> (Option<super::engine::ListedSandbox>, Vec<super::engine::ListedContainer>) {
    let sandbox = listing.sandboxes.iter().find(|s| *s.pod.uid == *uid).cloned();
    (sandbox, listing.containers.iter().filter(|c| *c.container.pod.uid == *uid).cloned().collect())
}

fn view_of(machine: &Machine, scheme: &str, synthetic: bool) -> View {
    let pod = &machine.plan.pod;
    let containers = machine.state.containers.iter().map(|run| {
        let attempt = |attempt: u32, id: &str| ContainerRef {
            pod: pod.clone(),
            name: run.name.as_str().into(),
            attempt,
            id: id.to_owned(),
        };
        let last_id = run.last.as_ref().map_or("", |end| end.id.as_str());
        ContainerView {
            name: run.name.clone(),
            current: (run.runs > 0).then(|| attempt(run.attempt(), &run.id)),
            previous: (run.runs > 1).then(|| attempt(run.attempt() - 1, last_id)),
            alive: run.is_alive(),
        }
    });
    let containers = containers.collect();
    View { observation: machine.observation(scheme), containers, synthetic }
}
