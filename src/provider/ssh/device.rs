//! Talking to a device: one connection for short scripts, and others for what takes long.
//!
//! A stream whose reader is slow would hold up everything on its connection. So each log that is followed, each
//! command and each forwarded port has a connection to itself while it lasts; afterwards the connection is kept for
//! a while for the next. Scripts are written to the standard input of a shell, so that nothing of them is seen in
//! the device's list of processes.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use russh::ChannelMsg;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::dial::{Link, dial};
use super::quote;
use super::script::refuse;
use super::settings::Settings;
use crate::provider::{ProviderError, Result};

/// A script, with the connection that it may have to wait for.
const CALL: Duration = Duration::from_secs(45);
/// Scripts at a time. Servers allow ten sessions on a connection unless they are told otherwise.
const CALLS: usize = 6;
/// Streams at a time.
const STREAMS: usize = 24;
/// How long to wait for one of them to end.
const TURN: Duration = Duration::from_secs(10);
/// How long a connection without a stream is kept.
const IDLE: Duration = Duration::from_secs(60);
/// After a connection that failed, at first and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// What a script may say.
const OUTPUT: usize = 16 << 20;

const HELPER: &str = include_str!("helper.sh");
const MISSING: &str = "VNODE-HELPER-MISSING";
const INSTALLED: &str = "VNODE-INSTALLED";
/// Exit codes of scripts.
const REFUSED: u32 = 65;
const STALE: u32 = 75;

pub(super) fn guard<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half-way under any of these locks.
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) struct Device {
    pub settings: Settings,
    helper: String,
    /// The helper's file, as a word for any shell.
    pub helper_file: String,
    control: tokio::sync::Mutex<Control>,
    /// Only one connection is made at a time: servers turn away those who come in crowds.
    dialing: tokio::sync::Mutex<()>,
    calls: Semaphore,
    streams: Arc<Semaphore>,
    idle: Mutex<Vec<(Instant, Link)>>,
}

#[derive(Default)]
struct Control {
    link: Option<Arc<Link>>,
    /// Why there is none, when to try again, and how long to wait after that.
    failed: Option<(String, Instant, Duration)>,
}

/// What a script has said.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    /// The device's own address, as we see it.
    pub ip: Option<IpAddr>,
    pub text: String,
}

/// Why a script did not do what it is for.
#[derive(Debug)]
pub(super) enum Failed {
    /// Nothing is known.
    Away(ProviderError),
    /// The device answered.
    Refused(String),
    /// It answered that it cannot do what the pod asks for.
    Unfit(String),
}

impl Failed {
    /// For a step of a pod: the device's answer is shown to users.
    pub fn step(self) -> ProviderError {
        match self {
            Self::Away(error) => error,
            Self::Refused(message) | Self::Unfit(message) => ProviderError::Rejected { reason: String::new(), message },
        }
    }

    /// For a container that is to be made.
    pub fn making(self) -> ProviderError {
        match self {
            Self::Unfit(message) => refuse(message),
            other => other.step(),
        }
    }

    /// For a question: without an answer nothing is known.
    pub fn asking(self) -> ProviderError {
        match self {
            Self::Away(error) => error,
            Self::Refused(message) | Self::Unfit(message) => ProviderError::unavailable(message),
        }
    }
}

impl Device {
    pub fn new(settings: Settings) -> Arc<Self> {
        let helper = HELPER.replace("@SHELL@", &settings.shell);
        let hash: String = Sha256::digest(helper.as_bytes()).iter().take(8).map(|b| format!("{b:02x}")).collect();
        let helper_file = format!("{}/helper-{hash}.sh", settings.directory);
        Arc::new(Self {
            settings,
            helper,
            helper_file,
            control: tokio::sync::Mutex::default(),
            dialing: tokio::sync::Mutex::default(),
            calls: Semaphore::new(CALLS),
            streams: Arc::new(Semaphore::new(STREAMS)),
            idle: Mutex::default(),
        })
    }

    /// The connection for scripts, made anew when it is gone, but not again and again.
    pub async fn control(&self) -> Result<Arc<Link>> {
        let mut control = self.control.lock().await;
        if let Some(link) = control.link.as_ref().filter(|l| !l.handle.is_closed()) {
            return Ok(link.clone());
        }
        control.link = None;
        let mut wait = BACK_OFF.0;
        if let Some((why, at, next)) = &control.failed {
            if Instant::now() < *at {
                return Err(ProviderError::unavailable(why.clone()));
            }
            wait = *next;
        }
        match self.dial().await {
            Ok(link) => {
                let link = Arc::new(link);
                *control = Control { link: Some(link.clone()), failed: None };
                Ok(link)
            }
            Err(why) => {
                let jitter = wait.mul_f64(rand::random_range(0.0..0.3));
                control.failed = Some((why.clone(), Instant::now() + wait + jitter, (wait * 2).min(BACK_OFF.1)));
                Err(ProviderError::unavailable(why))
            }
        }
    }

    async fn dial(&self) -> Result<Link, String> {
        let _turn = self.dialing.lock().await;
        dial(&self.settings).await
    }

    /// The connection does not do what it should: the next who asks gets another.
    async fn lose(&self, link: &Arc<Link>) {
        let mut control = self.control.lock().await;
        if control.link.as_ref().is_some_and(|l| Arc::ptr_eq(l, link)) {
            control.link = None;
        }
    }

    /// A connection for one stream.
    pub async fn lease(self: &Arc<Self>) -> Result<Lease> {
        // With its back-off; and what the device runs scripts with is there.
        self.control().await?;
        let turn = timeout(TURN, self.streams.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = turn else {
            return Err(ProviderError::unavailable(format!("{STREAMS} streams of this device are open already")));
        };
        self.tidy();
        let kept = guard(&self.idle).pop().map(|(_, link)| link);
        let link = match kept {
            Some(link) => link,
            None => self.dial().await.map_err(ProviderError::unavailable)?,
        };
        Ok(Lease { link: Some(link), device: self.clone(), keep: false, _permit: permit })
    }

    /// Lets go of connections that nobody has used for a while.
    pub fn tidy(&self) {
        guard(&self.idle).retain(|(since, link)| since.elapsed() < IDLE && !link.handle.is_closed());
    }

    /// Runs a script: commands of a POSIX shell that know the helper's functions. It is run as a whole or not at all.
    pub async fn run(&self, body: &str) -> Result<Said, Failed> {
        match timeout(CALL, self.try_run(body)).await {
            Ok(said) => said,
            Err(_) => Err(Failed::Away(ProviderError::unavailable("the device did not answer in time"))),
        }
    }

    async fn try_run(&self, body: &str) -> Result<Said, Failed> {
        let Ok(_turn) = self.calls.acquire().await else {
            return Err(Failed::Away(ProviderError::unavailable("the node is being let go")));
        };
        // A script that has come in part must not be begun: its function would not be closed.
        let script = format!(
            "VN_HELPER={0}\n[ -r \"$VN_HELPER\" ] || {{ echo {MISSING}; exit 0; }}\n. \"$VN_HELPER\"\nvn_script() {{\n\
             vn_begin\n{body}\n}}\n(vn_script) </dev/null\nVN_R=$?\n[ $VN_R != 1 ] || vn_full\nexit $VN_R\n",
            self.helper_file
        );
        for _ in 0..2 {
            let answer = self.talk(&script).await.map_err(Failed::Away)?;
            if answer.out.lines().any(|l| l.trim_end() == MISSING) {
                self.install().await?;
                continue;
            }
            return read(&answer);
        }
        Err(Failed::Refused("what was put on the device is not there any more".into()))
    }

    async fn install(&self) -> Result<(), Failed> {
        let dir = &self.settings.directory;
        let text: String = quote::formats(self.helper.as_bytes()).map(|f| format!("printf {f} || exit 1\n")).collect();
        let script = format!(
            "vn_install() {{\numask 077\nmkdir -p {dir} || exit 1\n{{\n{text}}} > {dir}/helper.$$ || exit 1\n\
             mv -f {dir}/helper.$$ {} || exit 1\necho {INSTALLED}\n}}\nvn_install\nexit\n",
            self.helper_file
        );
        let answer = self.talk(&script).await.map_err(Failed::Away)?;
        match answer.out.contains(INSTALLED) {
            true => Ok(()),
            false => Err(Failed::Refused(complain("the device's folder could not be made", &answer))),
        }
    }

    async fn talk(&self, script: &str) -> Result<Answer> {
        let link = self.control().await?;
        match converse(&link, &self.settings.shell, script).await {
            Ok(answer) => Ok(answer),
            Err(error) => {
                self.lose(&link).await;
                Err(ProviderError::Unavailable {
                    message: format!("the connection to {} broke", self.settings.device().name),
                    retry_after: None,
                    source: Some(Box::new(error)),
                })
            }
        }
    }
}

/// All that came of a command.
#[derive(Debug, Default)]
struct Answer {
    out: String,
    err: String,
    code: Option<u32>,
}

async fn converse(link: &Link, shell: &str, script: &str) -> Result<Answer, russh::Error> {
    let mut channel = link.handle.channel_open_session().await?;
    channel.exec(true, format!("exec {shell}")).await?;
    channel.data_bytes(Bytes::copy_from_slice(script.as_bytes())).await?;
    channel.eof().await?;
    let (mut out, mut err, mut code) = (Vec::new(), Vec::new(), None);
    while let Some(message) = channel.wait().await {
        match message {
            ChannelMsg::Data { data } if out.len() < OUTPUT => out.extend_from_slice(&data),
            ChannelMsg::ExtendedData { data, .. } if err.len() < OUTPUT => err.extend_from_slice(&data),
            ChannelMsg::ExitStatus { exit_status } => code = Some(exit_status),
            ChannelMsg::ExitSignal { .. } => code = Some(255),
            ChannelMsg::Failure => return Err(russh::Error::RequestDenied),
            // What the command has left in the background may hold the channel open.
            ChannelMsg::Close => break,
            _ => {}
        }
    }
    if code.is_none() {
        return Err(russh::Error::Disconnect);
    }
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Answer { out: text(out), err: text(err), code })
}

/// What a script said after its first line; before it may be what login shells print.
fn read(answer: &Answer) -> Result<Said, Failed> {
    let begun = answer.out.split_once("VNODE-BEGIN ").and_then(|(_, rest)| rest.split_once('\n'));
    match (answer.code, begun) {
        (Some(0), Some((first, text))) => {
            Ok(Said { ip: first.split_whitespace().nth(2).and_then(|ip| ip.parse().ok()), text: text.to_owned() })
        }
        (Some(STALE), _) => Err(Failed::Away(ProviderError::unavailable(format!(
            "another operator owns this node on the device, with the later epoch {}",
            answer.err.trim()
        )))),
        (Some(REFUSED), Some(_)) => Err(Failed::Unfit(last_line(&answer.err))),
        (_, Some(_)) => Err(Failed::Refused(complain("the device failed", answer))),
        (_, None) => Err(Failed::Refused(complain("the device's shell does not do what is expected", answer))),
    }
}

fn last_line(text: &str) -> String {
    text.trim().lines().last().unwrap_or_default().to_owned()
}

fn complain(what: &str, answer: &Answer) -> String {
    let said = if answer.err.trim().is_empty() { &answer.out } else { &answer.err };
    let what = if said.contains("No space left") { "the device's disk is full" } else { what };
    let said: String = last_line(said).chars().take(300).collect();
    match said.is_empty() {
        true => format!("{what} (exit code {})", answer.code.unwrap_or_default()),
        false => format!("{what}: {said}"),
    }
}

/// A connection that one stream has to itself.
pub(super) struct Lease {
    link: Option<Link>,
    device: Arc<Device>,
    keep: bool,
    _permit: OwnedSemaphorePermit,
}

impl Lease {
    pub fn link(&self) -> Result<&Link> {
        self.link.as_ref().ok_or_else(|| ProviderError::unavailable("the connection was let go"))
    }

    /// The stream ends, or has ended, as it should: the connection is good for another.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(link) = self.link.take()
            && self.keep
            && !link.handle.is_closed()
        {
            guard(&self.device.idle).push((Instant::now(), link));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: u32, out: &str, err: &str) -> Answer {
        Answer { out: out.into(), err: err.into(), code: Some(code) }
    }

    #[test]
    fn answers_are_read_whatever_login_shells_print_before() {
        let said = read(&answer(0, "Welcome!\nVNODE-BEGIN 1.5 boot 10.0.0.7\na\nb\n", "")).unwrap();
        assert_eq!((said.ip.unwrap().to_string().as_str(), said.text.as_str()), ("10.0.0.7", "a\nb\n"));
        for (given, want) in [
            (answer(75, "VNODE-BEGIN 1 b -\n", "9\n"), "later epoch 9"),
            (answer(65, "VNODE-BEGIN 1 b -\n", "no such thing\n"), "no such thing"),
            (answer(1, "VNODE-BEGIN 1 b -\n", "sh: write error: No space left on device\n"), "disk is full"),
            (answer(0, "This account is closed.\n", ""), "This account is closed."),
            (answer(127, "", ""), "exit code 127"),
        ] {
            let said = match read(&given).unwrap_err() {
                Failed::Away(error) => error.to_string(),
                Failed::Refused(message) | Failed::Unfit(message) => message,
            };
            assert!(said.contains(want), "{said}");
        }
    }
}
