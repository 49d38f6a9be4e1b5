//! exec and port-forward, in every way in which kubectl, the API server and a node can speak to each other.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Output, Stdio};

use crate::support::{Bed, pod};

fn exec(bed: &Bed, websockets: bool, words: &[&str], input: &[u8]) -> Output {
    let mut command = bed.command();
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets.to_string()).args(["exec", "-i"]).args(words);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kubectl");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    // It may end without having read everything.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let out = child.wait_with_output().expect("kubectl ends");
    writer.join().expect("the writer ends");
    out
}

fn forwarded(bed: &Bed, websockets: bool, pod: &str) -> String {
    let mut command = bed.command();
    command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets.to_string());
    command.args(["port-forward", &format!("pod/{pod}"), ":80", "--address", "127.0.0.1"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("kubectl");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let line = lines.next().expect("it says where it listens").expect("a line");
    let address = line.split_whitespace().nth(2).expect("an address");
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n").expect("it takes the request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let _ = child.kill();
    let _ = child.wait();
    answer
}

#[test]
fn commands_run_and_ports_lead_into_pods_whatever_is_spoken() {
    let mut bed = Bed::new();
    let (node, name) = (bed.name("talks"), bed.name("shell"));
    bed.ready_node(&node, "");
    bed.apply(&pod(&name, &node, ""));
    bed.wait(&format!("pod/{name}"), "condition=Ready");
    let own = bed.cluster.is_some();
    let much: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    for spoken in if own { &["declared", "spdy", "websocket"][..] } else { &["as the API server likes"] } {
        if own {
            bed.cluster.take().expect("our own").kill();
            bed.start_cluster_with(&["--kubelet-streams", spoken]);
        }
        for websockets in [true, false] {
            let way = format!("kubectl speaks WebSocket: {websockets}, the API server to the node: {spoken}");
            let echoed = exec(&bed, websockets, &[&name, "--", "echo", "hello"], b"");
            assert_eq!(String::from_utf8_lossy(&echoed.stdout), "hello\n", "{way}: {echoed:?}");
            assert!(echoed.status.success(), "{way}: {echoed:?}");
            let failed = exec(&bed, websockets, &[&name, "--", "sh", "-c", "exit 3"], b"");
            assert_eq!(failed.status.code(), Some(3), "{way}: {failed:?}");
            let copied = exec(&bed, websockets, &[&name, "--", "cat"], &much);
            assert!(copied.status.success() && copied.stdout == much, "{way}: {} bytes", copied.stdout.len());
            let answer = forwarded(&bed, websockets, &name);
            assert!(answer.contains(&name), "{way}: {answer}");
        }
    }
}
