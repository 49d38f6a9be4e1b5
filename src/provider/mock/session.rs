//! Sessions in simulated containers: a few commands, attach, and a page behind every port.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::StreamExt as _;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader, ReadBuf};

use super::logs;
use super::node::SimNode;
use super::sim::State;
use crate::provider::{ExitStatus, LogOptions, LogSource, PodRef, ProviderError, Result, SessionIo, Writer};

/// A request to a port that is longer than this is cut off.
const MAX_REQUEST: usize = 64 * 1024;

pub(super) fn running(node: &SimNode, pod: &PodRef, container: &str) -> Result<()> {
    let state = node.with(pod, |sim| sim.container(container).map(|c| c.state))?;
    match state {
        Some(State::Running { .. }) => Ok(()),
        Some(_) => Err(ProviderError::NotFound(format!("running container {container:?} in pod {pod}"))),
        None => Err(ProviderError::NotFound(format!("container {container:?} of pod {pod}"))),
    }
}

struct Session {
    node: Arc<SimNode>,
    pod: PodRef,
    container: String,
    stdin: Option<BufReader<crate::provider::Reader>>,
    stdout: Option<Writer>,
    stderr: Option<Writer>,
    tty: bool,
}

/// Runs a command until it ends, the container ends or the caller goes.
pub(super) async fn exec(
    node: Arc<SimNode>,
    pod: &PodRef,
    container: &str,
    command: &[String],
    io: SessionIo,
) -> Result<ExitStatus> {
    running(&node, pod, container)?;
    let mut session = Session {
        node: node.clone(),
        pod: pod.clone(),
        container: container.to_owned(),
        stdin: io.stdin.map(BufReader::new),
        stdout: io.stdout,
        stderr: io.stderr,
        tty: io.tty,
    };
    let code = tokio::select! {
        code = session.run(command.to_vec()) => code.map_err(broken)?,
        () = ended(&node, pod, container) => 137,
    };
    for out in [&mut session.stdout, &mut session.stderr].into_iter().flatten() {
        // The client may be gone, which does not change how the command ended.
        let _ = out.shutdown().await;
    }
    Ok(ExitStatus { code })
}

fn broken(error: std::io::Error) -> ProviderError {
    ProviderError::Unavailable {
        message: "writing to the session".into(),
        retry_after: None,
        source: Some(Box::new(error)),
    }
}

/// Returns when the container does not run any more.
async fn ended(node: &SimNode, pod: &PodRef, container: &str) {
    loop {
        let changed = node.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        if running(node, pod, container).is_err() {
            return;
        }
        changed.await;
    }
}

impl Session {
    async fn out(&mut self, text: &str) -> std::io::Result<()> {
        let Some(out) = &mut self.stdout else { return Ok(()) };
        if self.tty {
            return out.write_all(text.replace('\n', "\r\n").as_bytes()).await;
        }
        out.write_all(text.as_bytes()).await
    }

    async fn err(&mut self, text: &str) -> std::io::Result<()> {
        match (&mut self.stderr, self.tty) {
            (Some(err), false) => err.write_all(text.as_bytes()).await,
            _ => self.out(text).await,
        }
    }

    async fn run(&mut self, command: Vec<String>) -> std::io::Result<i32> {
        let mut words = command.iter().map(String::as_str);
        let Some(program) = words.next() else { return Ok(0) };
        let rest: Vec<&str> = words.collect();
        match program.rsplit('/').next().unwrap_or(program) {
            "sh" | "bash" | "ash" => match rest.as_slice() {
                [] => self.shell().await,
                ["-c", script, ..] | ["-lc", script, ..] => Ok(self.script(script).await?.1),
                [file, ..] => {
                    self.err(&format!("sh: {file}: No such file or directory\n")).await?;
                    Ok(127)
                }
            },
            name => self.simple(name, &rest).await,
        }
    }

    async fn simple(&mut self, name: &str, args: &[&str]) -> std::io::Result<i32> {
        match name {
            "true" | ":" => {}
            "false" => return Ok(1),
            "echo" => match args {
                ["-n", rest @ ..] => self.out(&rest.join(" ")).await?,
                _ => self.out(&format!("{}\n", args.join(" "))).await?,
            },
            "env" | "printenv" => return self.env(args).await,
            "date" => {
                let now = self.node.core.now().strftime("%a %b %e %H:%M:%S UTC %Y\n").to_string();
                self.out(&now).await?;
            }
            "hostname" => self.out(&format!("{}\n", self.pod.name)).await?,
            "pwd" => self.out("/\n").await?,
            "whoami" => self.out("root\n").await?,
            "ls" => match args.iter().find(|a| !a.starts_with('-')) {
                None | Some(&"/" | &".") => {
                    let names = "bin dev etc home lib proc root sbin sys tmp usr var\n";
                    self.out(&if self.tty { names.to_owned() } else { names.replace(' ', "\n") }).await?;
                }
                Some(path) => return self.missing("ls", path).await,
            },
            "cat" => match args.iter().find(|a| **a != "-") {
                Some(path) => return self.missing("cat", path).await,
                None => self.copy().await?,
            },
            "sleep" => {
                let seconds: f64 = args.first().and_then(|a| a.trim_end_matches('s').parse().ok()).unwrap_or(0.0);
                // Longer than a year is for ever; the session ends with its client or container.
                tokio::time::sleep(Duration::from_secs_f64(seconds.clamp(0.0, 31_536_000.0))).await;
            }
            other => {
                self.err(&format!("exec: {other:?}: executable file not found in $PATH\n")).await?;
                return Ok(127);
            }
        }
        Ok(0)
    }

    async fn missing(&mut self, program: &str, path: &str) -> std::io::Result<i32> {
        self.err(&format!("{program}: {path}: No such file or directory\n")).await?;
        Ok(1)
    }

    async fn env(&mut self, args: &[&str]) -> std::io::Result<i32> {
        let mut env = self.node.env(&self.pod, &self.container);
        env.entry("HOSTNAME".into()).or_insert_with(|| self.pod.name.to_string());
        env.entry("PATH".into())
            .or_insert_with(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
        if let [name] = args {
            return match env.get(*name) {
                Some(value) => {
                    self.out(&format!("{value}\n")).await?;
                    Ok(0)
                }
                None => Ok(1),
            };
        }
        let all: String = env.iter().map(|(k, v)| format!("{k}={v}\n")).collect();
        self.out(&all).await?;
        Ok(0)
    }

    async fn copy(&mut self) -> std::io::Result<()> {
        let Some(stdin) = &mut self.stdin else { return Ok(()) };
        match &mut self.stdout {
            Some(out) => {
                loop {
                    let bytes = stdin.fill_buf().await?;
                    if bytes.is_empty() {
                        break;
                    }
                    out.write_all(bytes).await?;
                    out.flush().await?;
                    let n = bytes.len();
                    stdin.consume(n);
                }
                Ok(())
            }
            None => tokio::io::copy(stdin, &mut tokio::io::sink()).await.map(|_| ()),
        }
    }

    /// Reads commands from standard input until its end or `exit`.
    async fn shell(&mut self) -> std::io::Result<i32> {
        let mut code = 0;
        loop {
            if self.tty {
                self.out("# ").await?;
                if let Some(out) = &mut self.stdout {
                    out.flush().await?;
                }
            }
            let mut line = Vec::new();
            let Some(stdin) = &mut self.stdin else { return Ok(code) };
            // A terminal ends lines with a carriage return.
            let end = if self.tty { b'\r' } else { b'\n' };
            use tokio::io::AsyncReadExt as _;
            let limited = (&mut *stdin).take(MAX_REQUEST as u64).read_until(end, &mut line).await?;
            if limited == 0 || line.first() == Some(&4) {
                return Ok(code);
            }
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            if self.tty {
                self.out(&format!("{text}\n")).await?;
            }
            let (exit, status) = self.script(&text).await?;
            code = status;
            if exit {
                return Ok(code);
            }
        }
    }

    /// Runs commands that are joined by `;`, `&&` or newlines. True when `exit` was among them.
    async fn script(&mut self, script: &str) -> std::io::Result<(bool, i32)> {
        let mut code = 0;
        for part in script.split([';', '\n']) {
            for (n, command) in part.split("&&").enumerate() {
                if n > 0 && code != 0 {
                    break;
                }
                let mut words = words(command);
                let to_stderr =
                    matches!(words.last().map(String::as_str), Some(">&2" | "1>&2")) && words.pop().is_some();
                let Some(name) = words.first().cloned() else { continue };
                let args: Vec<&str> = words.iter().skip(1).map(String::as_str).collect();
                if name == "exit" {
                    return Ok((true, args.first().and_then(|a| a.parse().ok()).unwrap_or(code) & 255));
                }
                code = if to_stderr && name == "echo" {
                    self.err(&format!("{}\n", args.join(" "))).await?;
                    0
                } else {
                    self.simple(&name, &args).await?
                };
            }
        }
        Ok((false, code))
    }
}

/// Splits at blanks outside of quotes.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut some) = (Vec::new(), String::new(), None, false);
    for c in command.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '\'' | '"') => (quote, some) = (Some(c), true),
            (None, c) if c.is_whitespace() => {
                if some || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                some = false;
            }
            (_, c) => word.push(c),
        }
    }
    if some || !word.is_empty() {
        words.push(word);
    }
    words
}

/// Shows a container's log as it is written, and echoes what is typed.
pub(super) async fn attach(node: Arc<SimNode>, pod: &PodRef, container: &str, io: SessionIo) -> Result<ExitStatus> {
    running(&node, pod, container)?;
    let options = LogOptions { follow: true, tail: Some(0), ..LogOptions::default() };
    let mut lines = logs::open(&node, pod, container, &options)?;
    let (mut stdin, mut stdout, mut stderr) = (io.stdin.map(BufReader::new), io.stdout, io.stderr);
    loop {
        tokio::select! {
            line = lines.next() => {
                let Some(line) = line else { break };
                let line = line?;
                let to = if line.source == LogSource::Stderr && stderr.is_some() { &mut stderr } else { &mut stdout };
                if let Some(out) = to {
                    out.write_all(&line.text).await.map_err(broken)?;
                    out.flush().await.map_err(broken)?;
                }
            }
            typed = read_some(&mut stdin) => match typed.map_err(broken)? {
                Some(bytes) => if let Some(out) = &mut stdout {
                    out.write_all(&bytes).await.map_err(broken)?;
                    out.flush().await.map_err(broken)?;
                },
                None => stdin = None,
            },
        }
    }
    let code = node.with(pod, |sim| match sim.container(container).map(|c| (c.state, c.last)) {
        Some((State::Terminated(end), _) | (State::BackOff { .. }, Some(end))) => end.code,
        _ => 137,
    });
    Ok(ExitStatus { code: code.unwrap_or(137) })
}

/// What was typed; `None` at the end of input. Waits for ever when there is no input.
async fn read_some(stdin: &mut Option<BufReader<crate::provider::Reader>>) -> std::io::Result<Option<Vec<u8>>> {
    let Some(stdin) = stdin else { return std::future::pending().await };
    let bytes = stdin.fill_buf().await?.to_vec();
    stdin.consume(bytes.len());
    Ok((!bytes.is_empty()).then_some(bytes))
}

/// Answers one HTTP/1.1 request with a page that names the pod and the port.
pub(super) struct Page {
    body: String,
    request: Vec<u8>,
    response: Option<(Vec<u8>, usize)>,
    closed: bool,
    reader: Option<Waker>,
}

impl Page {
    pub fn new(pod: &PodRef, port: u16) -> Self {
        let body = format!("Simulated pod {pod}, port {port}\n");
        Self { body, request: Vec::new(), response: None, closed: false, reader: None }
    }

    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl AsyncWrite for Page {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        if self.closed {
            return Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()));
        }
        if self.response.is_none() {
            self.request.extend_from_slice(bytes);
            let whole = self.request.windows(4).any(|w| w == b"\r\n\r\n");
            if whole || self.request.len() > MAX_REQUEST {
                let head = self.request.starts_with(b"HEAD ");
                let status = if whole { "200 OK" } else { "431 Request Header Fields Too Large" };
                let text = format!(
                    "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}",
                    self.body.len(),
                    if head { "" } else { &self.body }
                );
                self.request = Vec::new();
                self.response = Some((text.into_bytes(), 0));
                self.wake();
            }
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.closed = true;
        self.wake();
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Page {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let closed = self.closed;
        match &mut self.response {
            Some((bytes, at)) => {
                // Nothing is put once all is read: the end of the stream.
                let n = buf.remaining().min(bytes.len() - *at);
                buf.put_slice(&bytes[*at..*at + n]);
                *at += n;
                Poll::Ready(Ok(()))
            }
            None if closed => Poll::Ready(Ok(())),
            None => {
                self.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn words_are_split_outside_of_quotes() {
        assert_eq!(words("echo 'a b'  \"c\"d ''"), ["echo", "a b", "cd", ""]);
    }
}
