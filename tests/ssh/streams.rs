//! Commands, terminals, ports and figures.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use vnode::provider::{ProviderError, SessionIo, TerminalSize};

use crate::sshd::{Flavour, Sshd};
use crate::world::{World, eventually, exec, script};

fn world() -> Option<World> {
    Some(World::new(Sshd::start(Flavour::Machine)?, None))
}

#[tokio::test]
async fn a_command_reads_writes_and_ends_as_it_would_anywhere() {
    let Some(world) = world() else { return };
    let provider = world.provider();
    let reference = script(1, "sleep 1000").env("VAR", "here", false).create(&provider).await;
    world.runs(&reference).await;
    let long: Vec<u8> = (0..300_000u32).map(|n| b'a' + (n % 26) as u8).collect();
    let (code, said) = exec(&provider, &reference, &["cat"], &long).await;
    assert_eq!((code, said.len()), (0, long.len()));
    let words = ["sh", "-c", "printf '%s|' \"$@\" $VAR; exit 9", "sh", "it's", "a  b\n", "$(id)", ""];
    assert_eq!(exec(&provider, &reference, &words, b"").await, (9, "it's|a  b\n|$(id)||here|".into()));
    assert_eq!(exec(&provider, &reference, &["sh", "-c", "kill -KILL $$"], b"").await.0, 137);
    assert_eq!(exec(&provider, &reference, &["no-such-program"], b"").await.0, 127);
    let command = vec!["x".repeat(200_000)];
    let io = SessionIo { stdin: None, stdout: None, stderr: None, tty: false, resize: None };
    let refused = provider.exec(&reference, "main", &command, io).await;
    assert!(matches!(refused, Err(ProviderError::Invalid { .. })), "{refused:?}");
    provider.remove_pod(&reference).await.unwrap();
}

#[tokio::test]
async fn a_command_that_nobody_waits_for_is_ended() {
    let Some(world) = world() else { return };
    let provider = world.provider();
    let reference = script(1, "sleep 1000").create(&provider).await;
    world.runs(&reference).await;
    let io = SessionIo { stdin: None, stdout: None, stderr: None, tty: false, resize: None };
    let command = ["sh", "-c", "sleep 4711 & wait"].map(str::to_owned);
    let given_up = tokio::time::timeout(Duration::from_secs(2), provider.exec(&reference, "main", &command, io)).await;
    assert!(given_up.is_err());
    let runs = || world.sshd.running().into_iter().filter(|l| l.contains("4711")).collect::<Vec<_>>();
    eventually("it is ended, and what it started", || {
        let left = runs();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    world.runs(&reference).await;
    provider.remove_pod(&reference).await.unwrap();
}

#[tokio::test]
async fn a_terminal_has_the_size_of_the_clients() {
    let Some(world) = world() else { return };
    let provider = world.provider();
    let reference = script(1, "sleep 1000").create(&provider).await;
    world.runs(&reference).await;
    let (sizes, resize) = mpsc::channel(4);
    sizes.send(TerminalSize { width: 91, height: 33 }).await.unwrap();
    let (mut near, far) = tokio::io::duplex(4096);
    let (mut keys, stdin) = tokio::io::duplex(4096);
    let io = SessionIo {
        stdin: Some(Box::pin(stdin)),
        stdout: Some(Box::pin(far)),
        stderr: None,
        tty: true,
        resize: Some(resize),
    };
    let text = "tty -s && stty size; while read line; do [ \"$line\" != end ] || exit 4; stty size; done";
    let command = ["sh", "-c", text].map(str::to_owned);
    let (provider2, reference2) = (provider.clone(), reference.clone());
    let running = tokio::spawn(async move { provider2.exec(&reference2, "main", &command, io).await });
    let mut seen = String::new();
    let mut wait = async |word: &str| {
        while !seen.contains(word) {
            let mut part = [0; 256];
            let n =
                tokio::time::timeout(Duration::from_secs(20), near.read(&mut part)).await.expect("in time").unwrap();
            assert!(n > 0, "no {word} in {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&part[..n]));
        }
    };
    wait("33 91").await;
    sizes.send(TerminalSize { width: 60, height: 20 }).await.unwrap();
    for _ in 0..50 {
        keys.write_all(b"\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    wait("20 60").await;
    keys.write_all(b"end\n").await.unwrap();
    assert_eq!(running.await.unwrap().unwrap().code, 4);
    provider.remove_pod(&reference).await.unwrap();
}

#[tokio::test]
async fn ports_of_a_pod_are_reached_and_those_of_others_are_not() {
    let Some(world) = world() else { return };
    let provider = world.provider();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let serve = format!("exec python3 -m http.server --bind 127.0.0.1 {port}");
    let reference = script(1, &serve).create(&provider).await;
    world.runs(&reference).await;
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    let mut stream = loop {
        match provider.port_forward(&reference, port).await {
            Ok(stream) => break stream,
            Err(error) => assert!(tokio::time::Instant::now() < end, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.0 200"), "{text}");
    let foreign = provider.port_forward(&reference, other.local_addr().unwrap().port()).await;
    assert!(foreign.err().is_some_and(|e| e.is_not_found()), "a port of another program is not the pod's");
    provider.remove_pod(&reference).await.unwrap();
}

#[tokio::test]
async fn a_device_tells_what_it_is_and_what_its_pods_use() {
    let Some(world) = world() else { return };
    let provider = world.provider();
    let told = provider.describe_node().await.unwrap();
    assert_eq!(told.operating_system.as_deref(), Some("linux"));
    assert!(told.architecture.is_some() && told.capacity.contains_key("cpu") && told.capacity.contains_key("memory"));
    let reference = script(1, "while :; do :; done").create(&provider).await;
    world.runs(&reference).await;
    provider.stats().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let usage = provider.stats().await.unwrap();
    let used = usage.pods[0].containers[0].usage;
    assert!(used.cpu_nano_cores.is_some_and(|c| c > 10_000_000), "a busy loop uses the processor: {used:?}");
    assert!(used.memory_working_set.is_some_and(|m| m > 100_000), "{used:?}");
    provider.remove_pod(&reference).await.unwrap();
}
