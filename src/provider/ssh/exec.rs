//! Commands in a container's surroundings, and joining a container's output: exec and attach.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use russh::{ChannelMsg, ChannelWriteHalf, Sig, client};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::device::{Device, Lease};
use super::found;
use super::lines::verb;
use super::{logs, quote, script};
use crate::provider::runtime::{ContainerRef, ContainerState};
use crate::provider::{ExitStatus, LogOptions, LogSource, ProviderError, Reader, Result, SessionIo, TerminalSize};

/// How long the helper may take to begin.
const BEGIN: Duration = Duration::from_secs(30);
/// How much login shells may print before that.
const NOISE: usize = 64 * 1024;
/// The system takes no longer word, and a login shell gets the whole command as one.
const COMMAND: usize = 120 * 1024;
const CHUNK: usize = 16 * 1024;
/// A terminal whose client does not say how large it is.
const SIZE: TerminalSize = TerminalSize { width: 80, height: 24 };

/// A command that is ended when nobody waits for it any more.
struct Command {
    device: Arc<Device>,
    /// Its number and when it was started.
    process: Option<(u32, u64)>,
}

impl Drop for Command {
    fn drop(&mut self) {
        let Some((pid, start)) = self.process.take() else { return };
        let device = self.device.clone();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        // One script with a deadline; without an answer the command goes on, as it would if the connection broke.
        runtime.spawn(async move { drop(device.run(&format!("vn_end {pid} {start}")).await) });
    }
}

/// Runs a command where a container runs.
pub(super) async fn run(
    device: &Arc<Device>,
    container: &ContainerRef,
    command: &[String],
    mut io: SessionIo,
) -> Result<ExitStatus> {
    let broken = |e: russh::Error| ProviderError::unavailable(format!("exec: {e}"));
    let place = script::place(container)?;
    let mut lease = device.lease().await?;
    let words: String = command.iter().map(|w| format!(" {}", quote::octal_word(w))).collect();
    let line = verb(&lease, &format!("exec {}/{place}{words}", device.settings.node));
    if line.len() > COMMAND {
        return Err(ProviderError::Invalid {
            field: "command".into(),
            message: format!("is too long for this node: {} bytes on the way to it", line.len()),
        });
    }
    let mut running = Command { device: device.clone(), process: None };
    let (mut reader, writer) = start(&lease, &mut io, line).await?;
    let mut early = Vec::new();
    let mut noise = Noise(Some(Vec::new()).filter(|_| !io.tty));
    let mut complaints = Vec::new();
    let begun = timeout(BEGIN, async {
        while let Some(message) = reader.wait().await {
            match message {
                ChannelMsg::Data { data } => {
                    early.extend_from_slice(&data);
                    if let Some(begin) = begin(&early) {
                        return Some(begin);
                    }
                    if early.len() > NOISE {
                        return None;
                    }
                }
                ChannelMsg::ExtendedData { data, .. } => complaints.extend(noise.after(&data)),
                _ => {}
            }
        }
        None
    });
    let (process, rest) = match begun.await {
        Ok(Some(Start::At { process, rest })) => (process, rest),
        Ok(Some(Start::Gone)) => {
            lease.keep();
            return Err(ProviderError::NotFound(format!("running {container}")));
        }
        Ok(None) => return Err(ProviderError::unavailable("the device did not run the command")),
        Err(_) => return Err(ProviderError::unavailable("the device does not answer")),
    };
    running.process = Some(process);
    let (mut stdout, mut stderr) = (io.stdout.take(), io.stderr.take());
    let first = Bytes::copy_from_slice(&early[rest..]);
    let output = async {
        let mut code = None;
        put(&mut stdout, &first).await;
        put(&mut stderr, &complaints).await;
        while let Some(message) = reader.wait().await {
            match message {
                ChannelMsg::Data { data } => put(&mut stdout, &data).await,
                ChannelMsg::ExtendedData { data, .. } => put(&mut stderr, &noise.after(&data)).await,
                ChannelMsg::ExitStatus { exit_status } => code = Some(i32::try_from(exit_status).unwrap_or(255)),
                ChannelMsg::ExitSignal { signal_name, .. } => code = Some(128 + number(&signal_name)),
                // What the command has left in the background may keep its output open.
                ChannelMsg::Eof if code.is_some() => break,
                ChannelMsg::Close => break,
                _ => {}
            }
        }
        code
    };
    let input = pump(io.stdin.take(), &writer);
    let sizes = resize(io.resize.take(), &writer);
    let code = tokio::select! {
        code = output => code,
        never = async { tokio::join!(input, sizes).0 } => match never {},
    };
    for writer in [stdout.as_mut(), stderr.as_mut()].into_iter().flatten() {
        // A client that is gone misses nothing.
        let _ = writer.shutdown().await;
    }
    let Some(code) = code else { return Err(broken(russh::Error::Disconnect)) };
    running.process = None;
    // Fails when it is closed already.
    let _ = writer.close().await;
    lease.keep();
    Ok(ExitStatus { code })
}

type Halves = (russh::ChannelReadHalf, ChannelWriteHalf<client::Msg>);

async fn start(lease: &Lease, io: &mut SessionIo, line: String) -> Result<Halves> {
    let link = lease.link()?;
    let first = match (&mut io.resize, io.tty) {
        (Some(sizes), true) => sizes.try_recv().unwrap_or(SIZE),
        _ => SIZE,
    };
    let started = async {
        let channel = link.handle.channel_open_session().await?;
        if io.tty {
            let (width, height) = (u32::from(first.width), u32::from(first.height));
            channel.request_pty(true, "xterm", width, height, 0, 0, &[]).await?;
        }
        channel.exec(true, line).await?;
        Ok::<_, russh::Error>(channel.split())
    };
    match timeout(BEGIN, started).await {
        Ok(halves) => halves.map_err(|e| ProviderError::unavailable(format!("exec: {e}"))),
        Err(_) => Err(ProviderError::unavailable("the device does not answer")),
    }
}

#[derive(Debug, PartialEq)]
enum Start {
    /// The command's output begins at `rest`.
    At {
        process: (u32, u64),
        rest: usize,
    },
    Gone,
}

/// Looks for the helper's first line, with the end that terminals make of a line's.
fn begin(text: &[u8]) -> Option<Start> {
    let mut at = 0;
    for line in text.split_inclusive(|b| *b == b'\n') {
        at += line.len();
        if !line.ends_with(b"\n") {
            return None;
        }
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end();
        if line == "VNODE-GONE" {
            return Some(Start::Gone);
        }
        if let Some(words) = line.strip_prefix("VNODE-BEGIN ") {
            let mut words = words.split(' ').map(str::parse::<u64>);
            let pid = words.next()?.ok().and_then(|pid| u32::try_from(pid).ok())?;
            return Some(Start::At { process: (pid, words.next()?.ok()?), rest: at });
        }
    }
    None
}

/// What login shells print on standard error before the helper begins, which may arrive after that; `None` from then on.
struct Noise(Option<Vec<u8>>);

impl Noise {
    /// What of this is the command's.
    fn after(&mut self, data: &[u8]) -> Vec<u8> {
        const BEGIN: &[u8] = b"VNODE-BEGIN\n";
        let Some(heard) = &mut self.0 else { return data.to_vec() };
        heard.extend_from_slice(data);
        if let Some(at) = heard.windows(BEGIN.len()).position(|w| w == BEGIN) {
            let rest = heard.split_off(at + BEGIN.len());
            self.0 = None;
            return rest;
        }
        if heard.len() > NOISE {
            return self.0.take().unwrap_or_default();
        }
        Vec::new()
    }
}

async fn put(writer: &mut Option<crate::provider::Writer>, data: &[u8]) {
    if let Some(open) = writer
        && (open.write_all(data).await.is_err() || open.flush().await.is_err())
    {
        // The client is gone; the command goes on until the call is given up.
        *writer = None;
    }
}

/// Never ends, so that it is the command that decides.
async fn pump(stdin: Option<Reader>, writer: &ChannelWriteHalf<client::Msg>) -> std::convert::Infallible {
    if let Some(mut stdin) = stdin {
        let mut buffer = vec![0; CHUNK];
        while let Ok(n @ 1..) = stdin.read(&mut buffer).await {
            if writer.data_bytes(Bytes::copy_from_slice(&buffer[..n])).await.is_err() {
                break;
            }
        }
    }
    // Fails when the command has ended, which is seen elsewhere.
    let _ = writer.eof().await;
    std::future::pending().await
}

async fn resize(sizes: Option<mpsc::Receiver<TerminalSize>>, writer: &ChannelWriteHalf<client::Msg>) {
    let Some(mut sizes) = sizes else { return };
    while let Some(size) = sizes.recv().await {
        // It may have ended; a size is no reason to fail.
        let _ = writer.window_change(size.width.into(), size.height.into(), 0, 0).await;
    }
}

/// As Linux counts them. RFC 4254, section 6.10
fn number(signal: &Sig) -> i32 {
    let name = match signal {
        Sig::ABRT => "ABRT",
        Sig::ALRM => "ALRM",
        Sig::FPE => "FPE",
        Sig::HUP => "HUP",
        Sig::ILL => "ILL",
        Sig::INT => "INT",
        Sig::KILL => "KILL",
        Sig::PIPE => "PIPE",
        Sig::QUIT => "QUIT",
        Sig::SEGV => "SEGV",
        Sig::TERM => "TERM",
        Sig::USR1 => "USR1",
        // Servers say what is not in the list as `USR2@openssh.com` and the like.
        Sig::Custom(name) => name.split('@').next().unwrap_or_default(),
    };
    crate::provider::runtime::Signal::named(name).number().unwrap_or_default()
}

/// Follows what a container writes from now on, until it ends or the client does.
pub(super) async fn attach(device: &Arc<Device>, container: &ContainerRef, mut io: SessionIo) -> Result<ExitStatus> {
    let options = LogOptions { follow: true, tail: Some(0), ..LogOptions::default() };
    let mut lines = logs::open(device, container, &options).await?;
    while let Some(line) = lines.next().await {
        let line = line?;
        let writer = match line.source {
            LogSource::Stdout => &mut io.stdout,
            LogSource::Stderr => &mut io.stderr,
        };
        put(writer, &line.text).await;
        if io.stdout.is_none() && io.stderr.is_none() {
            return Ok(ExitStatus { code: 0 });
        }
    }
    drop(lines);
    for writer in [io.stdout.as_mut(), io.stderr.as_mut()].into_iter().flatten() {
        // A client that is gone misses nothing.
        let _ = writer.shutdown().await;
    }
    let look = script::look(&device.settings)?;
    let asked = device.run(&format!("{look}vn_record \"$VN_NODE\"/{}", script::place(container)?)).await;
    let found = asked.map_err(super::device::Failed::asking)?;
    let code = match found.text.lines().find_map(found::container).map(|f| f.state) {
        Some(ContainerState::Exited(exit)) => exit.code,
        // The log ended for another reason, and the container runs on.
        _ => 0,
    };
    Ok(ExitStatus { code })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_login_shell_complains_of_is_not_the_commands() {
        let mut noise = Noise(Some(Vec::new()));
        let heard = ["no bash\nVNODE-", "BEGIN\nto ", "err\n"].map(|part| noise.after(part.as_bytes())).concat();
        assert_eq!(String::from_utf8(heard).unwrap(), "to err\n");
        assert_eq!(Noise(None).after(b"VNODE-BEGIN\n"), b"VNODE-BEGIN\n", "with a terminal there is no mark");
    }

    #[test]
    fn the_commands_output_begins_after_the_helpers_line() {
        for (text, want) in [
            ("", None),
            ("VNODE-BEGIN 12 34", None),
            ("VNODE-BEGIN 12 34 -\nhello", Some(Start::At { process: (12, 34), rest: 20 })),
            ("hi!\r\nVNODE-BEGIN 12 34 -\r\n", Some(Start::At { process: (12, 34), rest: 26 })),
            ("hi!\nVNODE-GONE\n", Some(Start::Gone)),
        ] {
            assert_eq!(begin(text.as_bytes()), want, "{text:?}");
        }
    }
}
