//! Checks: logs, exec, attach, ports, statistics.

use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use super::super::{LogOptions, PodObservation, PodRef, Result, SessionIo};
use super::pods::{ContainerPlan, PodPlan};
use super::seen::{is_not_found, is_running};
use super::suite::{Failure, Suite, ensure, must, no_io, same};
use super::{Check, Need, PodFeature, server};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "logs_honour_tail_and_since",
        hint: "tail counts lines of what there is (0 is none of it), since leaves out older ones; without follow the stream \
               ends",
        needs: &[Need::LogLines],
        run: |s| tail_and_since(s).boxed_local(),
    },
    Check {
        name: "logs_of_what_is_not_there_are_not_found",
        hint: "an unknown container, and the previous instance of one that was never restarted, are NotFound",
        needs: &[Need::LogLines],
        run: |s| no_such_log(s).boxed_local(),
    },
    Check {
        name: "following_a_log_begins_with_what_there_is_and_ends_with_the_container",
        hint: "with follow the stream goes on until the container has ended, and the log outlives the container",
        needs: &[Need::LogLines],
        run: |s| follow(s).boxed_local(),
    },
    Check {
        name: "who_follows_a_log_sees_lines_as_they_are_written",
        hint: "do not collect lines: hand each on as it comes",
        needs: &[Need::Commands, Need::LogLines],
        run: |s| lines_arrive(s).boxed_local(),
    },
    Check {
        name: "a_line_says_when_and_where_it_was_written",
        hint: "each line has its time and whether it was standard output or standard error; bytes are passed on unchanged, \
               the line's end with them",
        needs: &[Need::Commands, Need::LogLines],
        run: |s| sources(s).boxed_local(),
    },
    Check {
        name: "exec_returns_output_and_exit_code",
        hint: "exec returns when the command has ended and its output is written; then the writers are dropped",
        needs: &[Need::Exec],
        run: |s| exec(s).boxed_local(),
    },
    Check {
        name: "exec_passes_standard_input_and_its_end",
        hint: "what is typed goes to the command; the end of stdin must close the command's standard input",
        needs: &[Need::Exec],
        run: |s| input(s).boxed_local(),
    },
    Check {
        name: "exec_keeps_standard_error_apart",
        hint: "without a terminal, standard output and standard error are two streams",
        needs: &[Need::Exec],
        run: |s| error_output(s).boxed_local(),
    },
    Check {
        name: "exec_passes_large_output_on_unchanged",
        hint: "write all of it before exec returns; wait for the reader, without a limit of one's own",
        needs: &[Need::Commands, Need::Exec],
        run: |s| large(s).boxed_local(),
    },
    Check {
        name: "exec_in_what_is_not_there_is_not_found",
        hint: "an unknown container is NotFound; nothing is run",
        needs: &[Need::Exec],
        run: |s| no_such_container(s).boxed_local(),
    },
    Check {
        name: "a_command_that_hangs_holds_nobody_up",
        hint: "calls do not wait for one another: an exec or a log that is not read must hold no lock",
        needs: &[Need::Exec],
        run: |s| hangs(s).boxed_local(),
    },
    Check {
        name: "who_attaches_sees_what_the_main_process_writes",
        hint: "attach joins the streams of the container's main process, from that moment on",
        needs: &[Need::Commands, Need::Attach],
        run: |s| attach(s).boxed_local(),
    },
    Check {
        name: "who_attaches_types_to_the_main_process",
        hint: "with stdin in its spec, the main process reads what is typed",
        needs: &[Need::Commands, Need::Attach, Need::Feature(PodFeature::Stdin)],
        run: |s| attach_and_type(s).boxed_local(),
    },
    Check {
        name: "a_forwarded_port_reaches_what_serves_on_it",
        hint: "port_forward connects to a port inside the pod, also to one that is in no spec",
        needs: &[Need::PortForward],
        run: |s| forward(s).boxed_local(),
    },
    Check {
        name: "statistics_name_pods_that_run",
        hint: "stats has an entry for each pod that runs, with its containers; what is not known is left out, never zero",
        needs: &[Need::Stats],
        run: |s| stats(s).boxed_local(),
    },
];

/// A pod that has written a line.
async fn logging(s: &Suite<'_>) -> Result<PodRef, Failure> {
    let (pod, _) = s.start(PodPlan::new("logging")).await?;
    s.wait_log(&pod.pod_ref(), "with a line", |text| !text.is_empty()).await?;
    Ok(pod.pod_ref())
}

async fn tail_and_since(s: &Suite<'_>) -> Result<(), Failure> {
    let pod = logging(s).await?;
    let lines = s.lines(&pod, LogOptions::default()).await?;
    ensure(lines.is_sorted_by_key(|l| l.time), "lines come oldest first")?;
    let of = async |options: LogOptions| Ok::<_, Failure>(s.lines(&pod, options).await?.len());
    same(of(LogOptions { tail: Some(0), ..LogOptions::default() }).await?, 0, "lines of tail 0")?;
    same(of(LogOptions { tail: Some(1), ..LogOptions::default() }).await?, 1, "lines of tail 1")?;
    let late = lines[lines.len() - 1].time + Duration::from_secs(3600);
    same(of(LogOptions { since: Some(late), ..LogOptions::default() }).await?, 0, "lines since the future")?;
    let all = of(LogOptions { since: Some(lines[0].time), ..LogOptions::default() }).await?;
    ensure(all >= lines.len(), format!("since the time of the first line is all: {all}, not {}", lines.len()))
}

async fn no_such_log(s: &Suite<'_>) -> Result<(), Failure> {
    let pod = logging(s).await?;
    let previous = LogOptions { previous: true, ..LogOptions::default() };
    let previous = s.provider().logs(&pod, "main", &previous).await.map(drop);
    ensure(is_not_found(&previous), format!("a previous instance that never was must be NotFound, not {previous:?}"))?;
    let unknown = s.provider().logs(&pod, "nobody", &LogOptions::default()).await.map(drop);
    ensure(is_not_found(&unknown), format!("an unknown container must be NotFound, not {unknown:?}"))
}

async fn follow(s: &Suite<'_>) -> Result<(), Failure> {
    let pod = logging(s).await?;
    let before = s.lines(&pod, LogOptions::default()).await?.len();
    let follow = LogOptions { follow: true, ..LogOptions::default() };
    let provider = s.provider();
    let (followed, stopped) = tokio::join!(s.lines(&pod, follow), provider.stop_pod(&pod, Duration::ZERO));
    must("stop a pod", stopped)?;
    let followed = followed?.len();
    ensure(followed >= before, format!("following begins with what there is: {followed} lines, not {before}"))?;
    s.wait(&pod, "terminated", PodObservation::is_terminated).await?;
    ensure(!s.lines(&pod, LogOptions::default()).await?.is_empty(), "the log outlives the container")
}

async fn lines_arrive(s: &Suite<'_>) -> Result<(), Failure> {
    let script = "n=0; while :; do n=$((n+1)); echo line $n; sleep 1; done";
    let (pod, _) = s.start(PodPlan::script("ticking", script)).await?;
    let options = LogOptions { follow: true, tail: Some(0), ..LogOptions::default() };
    let mut lines = must("follow a log", s.provider().logs(&pod.pod_ref(), "main", &options).await)?;
    for _ in 0..2 {
        match timeout(s.options.patience, lines.next()).await {
            Ok(Some(line)) => drop(must("read a log", line)?),
            Ok(None) => return Err(Failure::new("the log ended while its container runs")),
            Err(_) => return Err(Failure::new("no line came, but the container writes one each second")),
        }
    }
    Ok(())
}

async fn sources(s: &Suite<'_>) -> Result<(), Failure> {
    let before = jiff::Timestamp::now() - Duration::from_secs(60);
    let (pod, _) = s.start(PodPlan::script("two-streams", "echo out; echo err >&2; printf half; sleep 3600")).await?;
    let all = |text: &str| text.contains("out\n") && text.contains("err\n");
    s.wait_log(&pod.pod_ref(), "of both streams", all).await?;
    let lines = s.lines(&pod.pod_ref(), LogOptions::default()).await?;
    for (text, source) in [("out\n", "Stdout"), ("err\n", "Stderr")] {
        let found = lines.iter().find(|l| &l.text[..] == text.as_bytes());
        let Some(line) = found else {
            return Err(Failure::new(format!("{text:?} is not a line of its own: {lines:?}")));
        };
        same(format!("{:?}", line.source), source.to_owned(), format!("where {text:?} was written"))?;
        ensure(line.time > before, format!("{text:?} was written at {}, long before its container", line.time))?;
    }
    Ok(())
}

async fn exec(s: &Suite<'_>) -> Result<(), Failure> {
    let (pod, _) = s.start(PodPlan::new("shell")).await?;
    let pod = pod.pod_ref();
    for (script, code, output) in [("exit 3", 3, ""), ("echo one two", 0, "one two\n"), ("true", 0, "")] {
        let (seen, out, _) = s.sh(&pod, "main", script, None).await?;
        same(seen, code, format!("the exit code of {script:?}"))?;
        same(out.as_str(), output, format!("the output of {script:?}"))?;
    }
    // Streams that nobody asked for are no reason to fail.
    let command = ["sh", "-c", "echo unheard"].map(str::to_owned);
    let status = timeout(s.options.patience, s.provider().exec(&pod, "main", &command, no_io())).await;
    let status = status.map_err(|_| Failure::new("exec without streams did not end"))?;
    same(must("exec without streams", status)?.code, 0, "the exit code of an exec without streams")
}

async fn input(s: &Suite<'_>) -> Result<(), Failure> {
    let (pod, _) = s.start(PodPlan::new("typing")).await?;
    let (code, out, _) = s.sh(&pod.pod_ref(), "main", "cat", Some("typed\nand more\n")).await?;
    same(out.as_str(), "typed\nand more\n", "what cat makes of its input")?;
    same(code, 0, "the exit code of cat")
}

async fn error_output(s: &Suite<'_>) -> Result<(), Failure> {
    let (pod, _) = s.start(PodPlan::new("apart")).await?;
    let (_, out, err) = s.sh(&pod.pod_ref(), "main", "echo to out; echo to err >&2", None).await?;
    same((out.as_str(), err.as_str()), ("to out\n", "to err\n"), "standard output and standard error")
}

async fn large(s: &Suite<'_>) -> Result<(), Failure> {
    let (pod, _) = s.start(PodPlan::new("large")).await?;
    let script = "n=0; while [ $n -lt 20000 ]; do echo 0123456789012345678901234567890123456789; n=$((n+1)); done";
    let (code, out, _) = s.sh(&pod.pod_ref(), "main", script, None).await?;
    same((code, out.len()), (0, 20_000 * 41), "exit code and bytes of a large output")
}

async fn no_such_container(s: &Suite<'_>) -> Result<(), Failure> {
    let (pod, _) = s.start(PodPlan::new("alone")).await?;
    let unknown = s.provider().exec(&pod.pod_ref(), "nobody", &["true".to_owned()], no_io()).await;
    ensure(is_not_found(&unknown), format!("an unknown container must be NotFound, not {unknown:?}"))
}

async fn hangs(s: &Suite<'_>) -> Result<(), Failure> {
    let (pod, _) = s.start(PodPlan::new("hanging")).await?;
    let pod = pod.pod_ref();
    let provider = s.provider();
    let command = ["sh", "-c", "sleep 3600"].map(str::to_owned);
    let hanging = provider.exec(&pod, "main", &command, no_io());
    let others = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let begin = Instant::now();
        must("answer a ping", s.provider().ping().await)?;
        must("get the pod", s.provider().get_pod(&pod).await)?;
        must("list pods", s.provider().list_pods().await)?;
        let (code, ..) = s.sh(&pod, "main", "exit 4", None).await?;
        same(code, 4, "the exit code of a second exec")?;
        ensure(begin.elapsed() < s.options.patience, "the others must not wait")
    };
    // The caller goes away, which must end the session.
    tokio::select! {
        others = timeout(s.options.patience, others) => {
            others.map_err(|_| Failure::new("while an exec hangs, other calls must be answered"))??;
        }
        ended = hanging => return Err(Failure::new(format!("`sleep 3600` must not end by itself: {ended:?}"))),
    }
    must("get the pod", s.provider().get_pod(&pod).await).map(drop)
}

/// Attaches until something is heard; what is typed is all of standard input until then.
async fn hear(s: &Suite<'_>, pod: &PodRef, typed: Option<&str>, wanted: &str) -> Result<(), Failure> {
    let (mut out_near, out_far) = tokio::io::duplex(64 * 1024);
    let (mut in_near, in_far) = tokio::io::duplex(4096);
    let stdin = typed.is_some().then(|| Box::pin(in_far) as _);
    let io = SessionIo { stdin, stdout: Some(Box::pin(out_far)), ..no_io() };
    let provider = s.provider();
    let heard = async {
        if let Some(typed) = typed {
            in_near.write_all(typed.as_bytes()).await.map_err(|e| Failure::new(format!("must type, but: {e}")))?;
        }
        let (mut text, mut part) = (Vec::new(), [0; 1024]);
        while !String::from_utf8_lossy(&text).contains(wanted) {
            match out_near.read(&mut part).await {
                Ok(n) if n > 0 => text.extend_from_slice(&part[..n]),
                _ => return Err(Failure::new(format!("the output ended without {wanted:?}"))),
            }
        }
        Ok(())
    };
    tokio::select! {
        heard = timeout(s.options.patience, heard) => {
            heard.unwrap_or_else(|_| Err(Failure::new(format!("waited in vain for {wanted:?} by attach"))))
        }
        ended = provider.attach(pod, "main", io) => {
            Err(Failure::new(format!("attach to a container that runs must not end by itself: {ended:?}")))
        }
    }
}

async fn attach(s: &Suite<'_>) -> Result<(), Failure> {
    let (pod, _) = s.start(PodPlan::script("attached", "while :; do echo tick; sleep 1; done")).await?;
    hear(s, &pod.pod_ref(), None, "tick").await?;
    let after = must("get the pod", s.provider().get_pod(&pod.pod_ref()).await)?;
    ensure(is_running(&after), "a container outlives those who attach to it")
}

async fn attach_and_type(s: &Suite<'_>) -> Result<(), Failure> {
    let script = "while read word; do echo \"got $word\"; done; sleep 3600";
    let main = ContainerPlan::new("main").script(script).with(json!({"stdin": true}));
    let (pod, _) = s.start(PodPlan::new("typed").containers(vec![main])).await?;
    hear(s, &pod.pod_ref(), Some("this\n"), "got this").await
}

async fn forward(s: &Suite<'_>) -> Result<(), Failure> {
    let port = server::port();
    let plan = PodPlan::new("forwarded").restart("Never").containers(vec![server::container("main", port)]);
    let (pod, _) = s.start(plan).await?;
    let pod = pod.pod_ref();
    let end = Instant::now() + s.options.patience;
    loop {
        let answer = timeout(s.options.patience, ask(s, &pod, port)).await;
        match answer.map_err(|_| Failure::new("no answer by a forwarded port"))? {
            Ok(text) if text.starts_with("HTTP/1.") => return Ok(()),
            // It may not serve yet.
            other => {
                server::claimed(s, &pod, "main").await?;
                ensure(Instant::now() < end, format!("waited in vain for a page by a forwarded port: {other:?}"))?;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// What a port of the pod answers to a request.
async fn ask(s: &Suite<'_>, pod: &PodRef, port: u16) -> std::result::Result<String, String> {
    let mut stream = s.provider().port_forward(pod, port).await.map_err(|e| e.to_string())?;
    let request = "GET / HTTP/1.0\r\nHost: pod\r\n\r\n";
    stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
    stream.flush().await.map_err(|e| e.to_string())?;
    let mut answer = [0; 64];
    let n = stream.read(&mut answer).await.map_err(|e| e.to_string())?;
    Ok(String::from_utf8_lossy(&answer[..n]).into_owned())
}

async fn stats(s: &Suite<'_>) -> Result<(), Failure> {
    let (pod, _) = s.start(PodPlan::new("busy")).await?;
    let end = Instant::now() + s.options.patience;
    loop {
        let usage = must("tell statistics", s.provider().stats().await)?;
        let found = usage.pods.iter().find(|p| p.pod.uid == pod.pod_ref().uid);
        if found.is_some_and(|p| p.containers.iter().any(|c| c.name == "main")) {
            return Ok(());
        }
        ensure(Instant::now() < end, "a pod that runs is among the statistics, with its container")?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
