//! Interface V2, against the example in Python and against a service that breaks off.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use vnode::api::{ProviderSpec, WebConfig};
use vnode::provider::conformance::{self, Options};
use vnode::provider::registry::Registry;
use vnode::provider::{
    Credentials, FileSet, ProviderError, ResolvedMount, ResolvedPod, ResolvedVolume, SessionIo, TerminalSize,
    VolumeFile,
};

use crate::checked;
use crate::example::{Example, NODE_UID, PATIENCE, config, eventually, pod, provider};
use crate::fake::{Authority, Fake, Reply, json as answer, status};

fn python(args: &[&str]) -> Option<Example> {
    Example::start("python3", "web-v2-python/endpoint.py", args)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_in_python_conforms() {
    let Some(service) = python(&[]) else { return };
    let spec = ProviderSpec::web(config(&service.url));
    let make = |context| std::future::ready(Registry::default().build(&spec, context));
    let report = conformance::run(make, Options { patience: PATIENCE, ..Options::default() }).await;
    checked::record("web", &report);
}

fn with_file(mut pod: ResolvedPod, content: &str) -> ResolvedPod {
    let file =
        VolumeFile { path: "key".into(), content: content.to_owned().into(), mode: 0o600, owner: None, secret: true };
    pod.volumes.insert("settings".into(), ResolvedVolume::Files(FileSet { files: vec![file] }));
    pod.volumes.insert("scratch".into(), ResolvedVolume::EmptyDir { medium: String::new(), size_limit: None });
    let main = pod.containers.get_mut("main").unwrap();
    main.mounts = [("settings", "/etc/settings"), ("scratch", "/scratch")]
        .map(|(volume, path)| ResolvedMount { volume: volume.into(), path: path.into(), ..ResolvedMount::default() })
        .to_vec();
    pod
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_terminals_input_and_ports_reach_the_processes_of_a_pod() {
    let Some(service) = python(&[]) else { return };
    let (made, told) = provider(config(&service.url), None, 1);
    let made = made.unwrap();
    assert!(made.list_pods().await.unwrap().is_empty());
    let listen = "import socket; s = socket.create_server((\"127.0.0.1\", 0)); \
        print(s.getsockname()[1], flush=True)\nwhile True:\n c = s.accept()[0]\n while d := c.recv(999): c.sendall(d.upper())\n c.close()";
    let script = format!("cat etc/settings/key; echo made > scratch/file; python3 -c '{listen}'");
    let web = with_file(pod("web", 1, &script), "old\n");
    let reference = web.pod_ref();
    made.create_pod(&web).await.unwrap();
    let log = async || {
        use futures::StreamExt as _;
        let lines = made.logs(&reference, "main", &Default::default()).await.ok()?.collect::<Vec<_>>().await;
        let text: String = lines.into_iter().map(|l| String::from_utf8_lossy(&l.unwrap().text).into_owned()).collect();
        (text.lines().count() >= 2).then_some(text)
    };
    let text = eventually("it listens", log).await;
    assert!(text.starts_with("old\n"), "{text}");
    let port: u16 = text.lines().nth(1).unwrap().parse().unwrap();

    let mut stream = made.port_forward(&reference, port).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"HELLO");
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "the end of one side ends the other");

    let exec = async |script: &str, input: Option<&[u8]>, size: Option<TerminalSize>| {
        let (mut near, far) = tokio::io::duplex(1 << 16);
        let (sizes, resize) = mpsc::channel(1);
        if let Some(size) = size {
            sizes.send(size).await.unwrap();
        }
        let io = SessionIo {
            stdin: input.map(|i| Box::pin(std::io::Cursor::new(i.to_vec())) as _),
            stdout: Some(Box::pin(far)),
            stderr: None,
            tty: size.is_some(),
            resize: size.map(|_| resize),
        };
        let command = ["sh".to_owned(), "-c".to_owned(), script.to_owned()];
        let mut text = String::new();
        let (ended, _) = tokio::join!(made.exec(&reference, "main", &command, io), near.read_to_string(&mut text));
        drop(sizes);
        (ended.unwrap().code, text)
    };
    let large = "x".repeat(200_000);
    let (code, text) = exec("wc -c; exit 7", Some(large.as_bytes()), None).await;
    assert_eq!((code, text.trim()), (7, "200000"), "input has its end");
    let size = TerminalSize { width: 91, height: 17 };
    let (code, text) =
        exec("for i in 1 2 3 4 5 6 7 8 9; do stty size; sleep 0.1; done; test -t 0", None, Some(size)).await;
    assert!(code == 0 && text.contains("17 91"), "a terminal of its size: {code} {text:?}");

    made.update_volumes(&with_file(pod("web", 1, &script), "new"), &["settings".to_owned()]).await.unwrap();
    let (_, text) =
        exec("cat etc/settings/key scratch/file; stat -c %a etc/settings/key; echo $GREETING", None, None).await;
    assert_eq!(text, "newmade\n600\nhello\n");

    made.stop_pod(&reference, Duration::from_secs(5)).await.unwrap();
    eventually("the end comes over the change feed", async || {
        let told = told.changed.lock().unwrap();
        told.iter().any(|o| o.pod == reference && o.is_terminated()).then_some(())
    })
    .await;
    made.remove_pod(&reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_is_none_any_more_changes_nothing_and_a_wrong_token_is_told() {
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "right\n").unwrap();
    let Some(service) = python(&["--token-file", &token.path().display().to_string()]) else { return };
    let with = |token: &str, epoch| {
        let secret = Credentials([("token".to_owned(), token.to_owned().into())].into());
        let config = WebConfig { allow_insecure: true, ..config(&service.url) };
        provider(config, Some(secret), epoch).0.unwrap()
    };
    let said = with("wrong", 9).ping().await.unwrap_err().to_string();
    assert!(said.contains("401") && said.contains("token") && !said.contains("wrong"), "{said}");
    let (older, newer) = (with("right", 1), with("right", 2));
    older.create_pod(&pod("a", 1, "sleep 1000")).await.unwrap();
    newer.create_pod(&pod("b", 2, "sleep 1000")).await.unwrap();
    let late = older.create_pod(&pod("c", 3, "sleep 1000")).await.unwrap_err();
    assert!(
        matches!(late, ProviderError::Unavailable { .. }) && late.to_string().contains("another replica"),
        "{late}"
    );
    assert!(older.remove_pod(&pod("b", 2, "").pod_ref()).await.is_err());
    assert_eq!(newer.list_pods().await.unwrap().len(), 2);
    let refused =
        newer.create_pod(&ResolvedPod { containers: Default::default(), ..pod("d", 4, "") }).await.unwrap_err();
    assert_eq!(refused.to_string().split(": ").next(), Some("spec.containers[0].command"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_wants_certificates_is_reached_only_with_one() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        std::fs::write(dir.path().join(name), content).unwrap();
        dir.path().join(name).display().to_string()
    };
    let (cert, key) = authority.certificate("localhost");
    let (ca, cert, key) = (file("ca", &authority.pem), file("cert", &cert), file("key", &key));
    let Some(service) = python(&["--cert", &cert, "--key", &key, "--client-ca", &ca]) else { return };
    let url = service.url.replace("127.0.0.1", "localhost");
    let with = |issuer: Option<&Authority>| {
        let mut secret = authority.secret();
        if let Some((cert, key)) = issuer.map(|i| i.certificate("operator")) {
            secret.0.extend([("tls.crt".to_owned(), cert.into()), ("tls.key".to_owned(), key.into())]);
        }
        provider(config(&url), Some(secret), 1).0.unwrap()
    };
    let made = with(Some(&authority));
    made.ping().await.unwrap();
    let pod = pod("a", 1, "sleep 1000");
    made.create_pod(&pod).await.unwrap();
    eventually("it runs", async || {
        let io = SessionIo { stdin: None, stdout: None, stderr: None, tty: false, resize: None };
        made.exec(&pod.pod_ref(), "main", &["true".into()], io).await.ok()
    })
    .await;
    let said = with(None).ping().await.unwrap_err().to_string();
    assert!(said.contains("the service wants tls.crt and tls.key"), "{said}");
    let said = with(Some(&Authority::new())).ping().await.unwrap_err().to_string();
    assert!(said.contains("tls.crt of the credentials Secret"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attach_joins_the_process_and_ends_with_it() {
    let Some(service) = python(&[]) else { return };
    let (made, _) = provider(config(&service.url), None, 1);
    let made = made.unwrap();
    let mut interactive = pod("a", 1, "while read line; do echo \"got $line\"; done; exit 5");
    let mut spec = Pod::clone(&interactive.pod);
    spec.spec.as_mut().unwrap().containers[0].stdin = Some(true);
    interactive.pod = Arc::new(spec);
    let reference = interactive.pod_ref();
    made.create_pod(&interactive).await.unwrap();
    eventually("it runs", async || {
        let seen = made.get_pod(&reference).await.ok()?;
        seen.containers[0].state.as_ref()?.running.clone()
    })
    .await;
    let (mut near, far) = tokio::io::duplex(1024);
    let io = SessionIo {
        stdin: Some(Box::pin(&b"one\ntwo\n"[..])),
        stdout: Some(Box::pin(far)),
        stderr: None,
        tty: false,
        resize: None,
    };
    let mut text = String::new();
    let (ended, _) = tokio::join!(made.attach(&reference, "main", io), near.read_to_string(&mut text));
    assert_eq!((ended.unwrap().code, text.as_str()), (5, "got one\ngot two\n"));
    let io = SessionIo { stdin: None, stdout: None, stderr: None, tty: false, resize: None };
    let over = made.attach(&reference, "main", io).await;
    assert!(matches!(over, Err(ProviderError::NotFound(_))), "{over:?}");
}

fn state(phase: &str, sequence: i64) -> Value {
    let state = match phase {
        "running" => json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}}),
        _ => json!({"terminated": {"exitCode": 0}}),
    };
    json!({
        "uid": "u1", "namespace": "ns", "name": "a", "node": NODE_UID, "sequence": sequence, "podIPs": ["10.0.0.1"],
        "containerStatuses": [{"name": "main", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": state}],
    })
}

#[tokio::test]
async fn a_change_feed_that_breaks_is_taken_up_where_it_broke() {
    let feeds: Arc<Mutex<Vec<mpsc::UnboundedSender<String>>>> = Arc::default();
    let opened = feeds.clone();
    let about =
        json!({"interface": "vnode.dev/provider", "versions": ["v2", "v9"], "abilities": {"watch": true, "new": true}});
    let base = format!("/v2/nodes/{NODE_UID}");
    let service = Fake::start(move |r| match r.path.strip_prefix(&base) {
        None if r.path == "/v2/capabilities" => answer(about.clone()),
        Some("/pods") => answer(json!({"pods": [state("running", 1)], "cursor": "c1"})),
        Some("/events") => {
            let (send, receive) = mpsc::unbounded_channel();
            opened.lock().unwrap().push(send);
            Reply::Stream("text/event-stream", receive)
        }
        _ => status(404),
    })
    .await;
    let (made, told) = provider(config(&service.url), None, 1);
    let made = made.unwrap();
    assert_eq!(made.list_pods().await.unwrap().len(), 1);
    let feed =
        async |n: usize| eventually("the feed is followed", async || feeds.lock().unwrap().get(n).cloned()).await;
    let first = feed(0).await;
    first.send(format!(": hello\n\nid: c2\nevent: pod\ndata: {}\n\n", state("ended", 3))).unwrap();
    eventually("the event is told", async || {
        told.changed.lock().unwrap().last().filter(|o| o.is_terminated()).cloned()
    })
    .await;
    first.send(format!("id: c3\nevent: pod\ndata: {}\n\n", state("running", 2))).unwrap();
    first.send("id: c4\nevent: novelty\ndata: {}\n\nid: c5\nevent: notice\ndata: {\"uid\": \"u1\", \"reason\": \"Hot\", \"message\": \"42 degrees\"}\n\n".into()).unwrap();
    let event = eventually("the notice is told", async || told.events.lock().unwrap().pop()).await;
    assert_eq!(event.message, "Hot: 42 degrees");
    assert!(told.changed.lock().unwrap().last().unwrap().is_terminated(), "what was overtaken is no news");
    drop(first);
    feeds.lock().unwrap()[0] = mpsc::unbounded_channel().0;
    let second = feed(1).await;
    let cursors = || {
        let asked = service.asked.lock().unwrap();
        asked
            .iter()
            .filter(|r| r.path.ends_with("/events"))
            .map(|r| r.headers.get("last-event-id").cloned())
            .collect::<Vec<_>>()
    };
    assert_eq!(cursors(), [Some("c1".into()), Some("c5".into())]);
    let lists = service.count("GET", &format!("/v2/nodes/{NODE_UID}/pods"));
    second.send("event: reset\ndata: {}\n\n".into()).unwrap();
    let third = feed(2).await;
    assert_eq!(service.count("GET", &format!("/v2/nodes/{NODE_UID}/pods")), lists + 1, "a reset is followed by a list");
    third.send("event: gone\ndata: {\"uid\": \"u1\"}\n\n".into()).unwrap();
    eventually("that it is gone is told", async || told.missing.lock().unwrap().pop()).await;
}

#[tokio::test]
async fn a_service_that_was_away_for_long_is_heard_again_as_soon_as_it_answers() {
    let (away, feeds, failed) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let base = format!("/v2/nodes/{NODE_UID}");
    let (is_away, opened, refused) = (away.clone(), feeds.clone(), failed.clone());
    let service = Fake::start(move |r| {
        if is_away.load(Ordering::Relaxed) {
            refused.fetch_add(1, Ordering::Relaxed);
            return status(503);
        }
        match r.path.strip_prefix(&base) {
            None if r.path == "/v2/capabilities" => {
                answer(json!({"interface": "vnode.dev/provider", "versions": ["v2"], "abilities": {"watch": true}}))
            }
            Some("/pods") => answer(json!({"pods": [], "cursor": "c1"})),
            Some("/events") => {
                opened.fetch_add(1, Ordering::Relaxed);
                status(503)
            }
            _ => status(404),
        }
    })
    .await;
    away.store(true, Ordering::Relaxed);
    let made = provider(config(&service.url), None, 1).0.unwrap();
    made.list_pods().await.unwrap_err();
    eventually("it was asked often", async || (failed.load(Ordering::Relaxed) > 5).then_some(())).await;
    away.store(false, Ordering::Relaxed);
    made.ping().await.unwrap();
    let heard = eventually("it is heard", async || (feeds.load(Ordering::Relaxed) > 0).then_some(()));
    // By itself it would wait for four seconds at the least.
    tokio::time::timeout(Duration::from_secs(2), heard).await.unwrap();
}
