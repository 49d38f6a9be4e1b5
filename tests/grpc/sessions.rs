//! Bytes arrive in both directions, and their ends.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;
use vnode::provider::grpc::GrpcFactory;
use vnode::provider::{LogOptions, ProviderError, SessionIo};

use crate::world::{Node, Twisted, pod, runs, until};

fn words(text: &str) -> Vec<String> {
    ["sh", "-c", text].map(str::to_owned).into()
}

#[tokio::test]
async fn a_command_reads_what_is_typed_and_its_streams_are_kept_apart() {
    let service = Twisted::default();
    let node = Node::new("n", service.serve().await);
    let provider = node.build(&GrpcFactory::default());
    let a = pod("a", "sleep 3600", "Always");
    provider.create_pod(&a).await.unwrap();
    let (mut typed, stdin) = tokio::io::duplex(64);
    let (mut out, stdout) = tokio::io::duplex(1 << 20);
    let (mut err, stderr) = tokio::io::duplex(1024);
    let io = SessionIo {
        stdin: Some(Box::pin(stdin)),
        stdout: Some(Box::pin(stdout)),
        stderr: Some(Box::pin(stderr)),
        tty: false,
        resize: None,
    };
    let reference = a.pod_ref();
    let command = words("wc -c; echo wrong >&2; exit 5");
    let sent = 300_000;
    let typing = async move {
        typed.write_all(&vec![b'x'; sent]).await.unwrap();
        drop(typed);
    };
    let run = provider.exec(&reference, "main", &command, io);
    let (mut said, mut wrong) = (String::new(), String::new());
    let all = async { tokio::join!(run, typing, out.read_to_string(&mut said), err.read_to_string(&mut wrong)) };
    let (status, ..) = timeout(Duration::from_secs(20), all).await.unwrap();
    assert_eq!(status.unwrap().code, 5);
    assert_eq!((said.trim(), wrong.as_str()), (sent.to_string().as_str(), "wrong\n"));

    let io = SessionIo { stdin: None, stdout: None, stderr: None, tty: true, resize: None };
    let terminal = provider.exec(&reference, "main", &command, io).await;
    assert!(matches!(terminal, Err(ProviderError::Unsupported(_))), "the example has no terminals: {terminal:?}");
    let io = SessionIo { stdin: None, stdout: None, stderr: None, tty: false, resize: None };
    let attached = provider.attach(&reference, "main", io).await;
    assert!(matches!(attached, Err(ProviderError::Unsupported(_))), "{attached:?}");
    provider.remove_pod(&reference).await.unwrap();
}

#[tokio::test]
async fn a_command_that_is_silent_until_something_is_typed_gets_it() {
    let service = Twisted::default();
    service.0.speaks_late.store(true, Ordering::Relaxed);
    let provider = Node::new("n", service.serve().await).build(&GrpcFactory::default());
    let a = pod("a", "sleep 3600", "Always");
    provider.create_pod(&a).await.unwrap();
    let (mut typed, stdin) = tokio::io::duplex(64);
    let (mut out, stdout) = tokio::io::duplex(64);
    let io = SessionIo {
        stdin: Some(Box::pin(stdin)),
        stdout: Some(Box::pin(stdout)),
        stderr: None,
        tty: false,
        resize: None,
    };
    let typing = async move {
        // Longer than any other call may last.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        typed.write_all(b"a word").await.unwrap();
    };
    let (reference, command, mut said) = (a.pod_ref(), words("cat"), String::new());
    let all =
        async { tokio::join!(provider.exec(&reference, "main", &command, io), typing, out.read_to_string(&mut said)) };
    let (status, ..) = timeout(Duration::from_secs(20), all).await.unwrap();
    assert_eq!((status.unwrap().code, said.as_str()), (0, "a word"));
    provider.remove_pod(&reference).await.unwrap();
}

#[tokio::test]
async fn a_forwarded_port_carries_bytes_until_both_ends_are_done() {
    let service = Twisted::default();
    let provider = Node::new("n", service.serve().await).build(&GrpcFactory::default());
    let a = pod("a", "sleep 3600", "Always");
    provider.create_pod(&a).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let echo = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        // Answers only when the client has said all: its end must arrive.
        stream.read_to_end(&mut all).await.unwrap();
        all.reverse();
        stream.write_all(&all).await.unwrap();
    });
    let mut stream = provider.port_forward(&a.pod_ref(), port).await.unwrap();
    let carried = timeout(Duration::from_secs(20), async {
        stream.write_all(&[&[7u8][..], &[9u8; 200_000]].concat()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await.unwrap();
        back
    });
    let back = carried.await.unwrap();
    assert_eq!((back.len(), back.last()), (200_001, Some(&7)));
    echo.await.unwrap();
    let closed = provider.port_forward(&a.pod_ref(), port).await.err().expect("nobody listens any more");
    assert!(closed.to_string().contains(&format!("port {port}")), "{closed}");
    provider.remove_pod(&a.pod_ref()).await.unwrap();
}

#[tokio::test]
async fn logs_that_nobody_reads_hold_up_no_pod() {
    let service = Twisted::default();
    let node = Node::new("n", service.serve().await);
    let provider = node.build(&GrpcFactory::default());
    let a = pod("a", "head -c 3000000 /dev/zero | tr '\\0' 'x' | fold -w 1000; sleep 3600", "Always");
    provider.create_pod(&a).await.unwrap();
    until("it runs", async || node.ear.last(&a.pod_ref()).is_some_and(|o| runs(&o))).await;
    let follow = LogOptions { follow: true, ..LogOptions::default() };
    let mut unread = Vec::new();
    for _ in 0..100 {
        unread.push(provider.logs(&a.pod_ref(), "main", &follow).await.unwrap());
    }
    let b = pod("b", "sleep 3600", "Always");
    timeout(Duration::from_secs(10), provider.create_pod(&b)).await.unwrap().unwrap();
    until("the other runs", async || node.ear.last(&b.pod_ref()).is_some_and(|o| runs(&o))).await;
    provider.ping().await.unwrap();
    drop(unread);
    for pod in [a, b] {
        provider.remove_pod(&pod.pod_ref()).await.unwrap();
    }
}
