//! The supervisor of one container: a program of its own, so that it outlives the `vnode` that started it.
//!
//! ```text
//!  vnode ──▶ vnode supervise ──▶ vnode supervise --launch ──exec──▶ the container's command
//!    │            │  log, running.json, exit.json
//!    └─ ctl.sock ─┘  watch, signal, attach, exec, follow
//! ```
//!
//! It is the parent of everything in the container, by adoption too, so it can send signals without a race,
//! and kill what is left when the main process has ended. It has one thread and knows no Kubernetes.
//!
//! | module | what it is |
//! |---|---|
//! | `launch` | the step between fork and exec |
//! | `child` | a command with pipes or a terminal |
//! | `server` | what is asked over the socket |
//! | `log` | the log in the CRI format |

mod child;
mod launch;
pub(super) mod log;
mod server;

use std::cell::RefCell;
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use rustix::process::{Pid, WaitOptions};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, mpsc, watch};

use super::cgroup;
use super::layout::{EXIT, LOG, RUN, RUNNING, Run, Running};
use super::proc;
use super::wire::{Frame, Reply, SOCKET};
use crate::provider::LogSource;
use crate::provider::runtime::Exit;
use child::{Child, Output};
use log::LogWriter;

/// How long the start of the main process may take.
const LAUNCH: Duration = Duration::from_secs(20);
/// How long output is waited for after everything has been killed.
const DRAIN: Duration = Duration::from_secs(2);
/// Frames that a slow client may lag behind.
const LAG: usize = 256;

/// The hidden command `vnode supervise`.
#[derive(Debug, clap::Args)]
pub struct SuperviseArgs {
    /// The container's folder.
    dir: PathBuf,
    /// Become the container's command.
    #[arg(long)]
    launch: Option<String>,
}

/// Runs the supervisor, or the step that it starts commands with. Must be called before there are threads.
///
/// # Errors
/// When the container's folder does not hold what it should.
pub fn main(args: &SuperviseArgs) -> io::Result<()> {
    std::env::set_current_dir(&args.dir)?;
    if let Some(launch) = &args.launch {
        launch::launch(&serde_json::from_str(launch)?);
    }
    rustix::process::setsid()?;
    let myself = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(myself))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(supervise(myself)))
}

/// What the connections share.
struct Shared {
    run: Run,
    /// Children that somebody waits for; the others are reaped.
    known: RefCell<HashSet<i32>>,
    main: RefCell<Option<Main>>,
    output: broadcast::Sender<Frame>,
    grown: watch::Sender<u64>,
    ended: watch::Sender<Option<i32>>,
    /// Has a receiver for each command that runs beside the main process.
    sessions: watch::Sender<()>,
    launched: mpsc::Sender<String>,
}

struct Main {
    pid: i32,
    stdin: Option<mpsc::Sender<child::Input>>,
}

async fn supervise(myself: Pid) -> io::Result<()> {
    let run: Run = super::layout::read(Path::new(RUN))?.ok_or_else(|| io::Error::other("no run.json"))?;
    let _ = std::fs::remove_file(SOCKET);
    let listener = UnixListener::bind(SOCKET)?;
    let mut writer = LogWriter::open(Path::new(LOG), run.log_bytes, run.log_files)?;
    let (launched, mut launch_errors) = mpsc::channel(1);
    let shared = Rc::new(Shared {
        known: RefCell::default(),
        main: RefCell::default(),
        output: broadcast::Sender::new(LAG),
        grown: watch::Sender::new(0),
        ended: watch::Sender::new(None),
        sessions: watch::Sender::new(()),
        launched,
        run,
    });
    tokio::task::spawn_local(reap(shared.clone()));
    tokio::task::spawn_local(server::serve(listener, shared.clone()));

    if let Some(group) = &shared.run.group
        && let Err(error) = group.make(&shared.run.limits)
    {
        return answer(&Reply::Failed(format!("setting its limits: {error}"))).await;
    }
    let command = shared.run.command.clone();
    let (tty, stdin) = (shared.run.tty, shared.run.stdin);
    let mut child = match Child::spawn(&shared, command, tty, stdin, true) {
        Ok(child) => child,
        Err(error) => return answer(&Reply::Failed(error.to_string())).await,
    };
    // The connection of the launching process ends when it has become the command, or with the reason why not.
    let failed = match tokio::time::timeout(LAUNCH, launch_errors.recv()).await {
        Ok(message) => message.filter(|m| !m.is_empty()),
        Err(_) => Some(format!("the command was not started within {LAUNCH:?}")),
    };
    if let Some(message) = failed {
        kill_all(myself.as_raw_pid());
        let _ = child::status(&mut child.process, &shared).await;
        shared.run.group.iter().for_each(cgroup::Group::remove);
        return answer(&Reply::Failed(message)).await;
    }
    let started_at = Timestamp::now();
    *shared.main.borrow_mut() = Some(Main { pid: child.pid, stdin: child.stdin.take() });
    let me = myself.as_raw_pid();
    let start = proc::process(me).map_or(0, |p| p.start);
    super::layout::write(Path::new(RUNNING), &Running { supervisor: (me, start), pid: child.pid, started_at })?;
    answer(&Reply::Done).await?;

    let note = |source, data: &Bytes, writer: &mut LogWriter| {
        // A full disk loses lines, not the container.
        let _ = writer.write(source, data, Timestamp::now());
        shared.grown.send_modify(|n| *n += 1);
        let frame = match source {
            LogSource::Stdout => Frame::Stdout(data.clone()),
            LogSource::Stderr => Frame::Stderr(data.clone()),
        };
        // Fails when nobody is attached.
        let _ = shared.output.send(frame);
    };
    let status = loop {
        tokio::select! {
            Some(Output { source, data }) = child.output.recv() => note(source, &data, &mut writer),
            status = child::status(&mut child.process, &shared) => break status,
        }
    };
    let finished_at = Timestamp::now();
    kill_all(me);
    let drained = async {
        while let Some(Output { source, data }) = child.output.recv().await {
            note(source, &data, &mut writer);
        }
    };
    let _ = tokio::time::timeout(DRAIN, drained).await;
    let _ = writer.finish(Timestamp::now());
    let oom_killed = shared.run.group.as_ref().is_some_and(cgroup::Group::ran_out_of_memory);
    shared.run.group.iter().for_each(cgroup::Group::remove);
    let (code, signal) = status?;
    let exit =
        Exit { code, signal, started_at: Some(started_at), finished_at, oom_killed, reason: None, message: None };
    super::layout::write(Path::new(EXIT), &exit)?;
    shared.ended.send_replace(Some(code));
    // Clients get the last output and the code before everything closes.
    let told = async { tokio::join!(shared.output.closed(), shared.sessions.closed()) };
    tokio::time::timeout(DRAIN, told).await.ok();
    Ok(())
}

/// To the `vnode` that started us, which may be gone.
async fn answer(reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    let mut out = tokio::io::stdout();
    let _ = out.write_all(&line).await;
    let _ = out.flush().await;
    Ok(())
}

/// Kills everything that descends from us. Each look may find what was forked since the one before.
fn kill_all(me: i32) {
    for _ in 0..50 {
        let table = proc::table();
        let left: Vec<i32> =
            proc::family(&table, me).into_iter().filter(|pid| table.get(pid).is_some_and(|p| !p.zombie)).collect();
        if left.is_empty() {
            return;
        }
        proc::kill(left);
    }
}

/// Waits for those that were adopted: nobody else does.
async fn reap(shared: Rc<Shared>) {
    let Ok(mut died) = signal(SignalKind::child()) else { return };
    let me = rustix::process::getpid().as_raw_pid();
    while died.recv().await.is_some() {
        let table = proc::table();
        let zombies = table.iter().filter(|(_, p)| p.parent == me && p.zombie).map(|(pid, _)| *pid);
        for pid in zombies {
            if !shared.known.borrow().contains(&pid) {
                let _ = rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::NOHANG);
            }
        }
    }
}
