//! exec, attach, cp and port-forward, in every way in which kubectl, the API server and a node can speak to each other.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Output, Stdio};

use crate::support::{Bed, exec_whole, pod};

fn exec(bed: &Bed, websockets: bool, words: &[&str], input: &[u8]) -> Output {
    exec_whole(|| exec_once(bed, websockets, words, input))
}

fn exec_once(bed: &Bed, websockets: bool, words: &[&str], input: &[u8]) -> Output {
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

/// The ways in which kubectl and the API server can speak, to kubectl and to the node.
const WAYS: [(bool, &str); 3] = [(false, "spdy"), (true, "spdy"), (true, "websocket")];

/// A node whose pods are processes, so that they have files, terminals and sockets.
fn processes(bed: &mut Bed) -> String {
    let state = bed.dir.path().join("pods").display().to_string();
    bed.start_operator_with(&["--allow-host-processes", "--state-dir", &state]);
    let node = bed.name("local");
    bed.ready_node(&node, "  provider: {type: process, process: {allowRoot: true, podIP: 127.0.0.1}}");
    node
}

fn process(name: &str, node: &str, script: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeSelector: {{kubernetes.io/hostname: {node}}}\n  \
         tolerations: [{{operator: Exists}}]\n  terminationGracePeriodSeconds: 1\n  \
         containers: [{{name: main, image: host, command: [sh, -c, {script:?}]{more}}}]\n"
    )
}

/// Restarts the cluster so that it speaks to nodes in one way.
fn speak(bed: &mut Bed, spoken: &str) {
    bed.cluster.take().expect("our own").kill();
    bed.start_cluster_with(&["--kubelet-streams", spoken]);
}

fn kubectl(bed: &Bed, websockets: bool) -> std::process::Command {
    let mut command = bed.command();
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets.to_string());
    command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets.to_string());
    command
}

#[test]
fn trees_are_copied_input_is_attached_and_terminals_work() {
    let mut bed = Bed::cluster_only();
    if bed.cluster.is_none() {
        return eprintln!("SKIPPED: needs processes on this machine");
    }
    let node = processes(&mut bed);
    bed.apply(&process("files", &node, "sleep 1000", ""));
    bed.wait("pod/files", "condition=Ready");
    let tree = bed.dir.path().join("tree");
    std::fs::create_dir_all(tree.join("deep/er")).expect("a folder");
    let much: Vec<u8> = (0..8_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(tree.join("much"), &much).expect("a file");
    std::fs::write(tree.join("deep/er/little"), "little").expect("a file");
    for (websockets, spoken) in WAYS {
        speak(&mut bed, spoken);
        let way = format!("kubectl speaks WebSocket: {websockets}, the API server to the node: {spoken}");
        let there = bed.dir.path().join(format!("there-{websockets}-{spoken}"));
        let back = bed.dir.path().join(format!("back-{websockets}-{spoken}"));
        for (from, to) in [
            (tree.display().to_string(), format!("files:{}", there.display())),
            (format!("files:{}", there.display()), back.display().to_string()),
        ] {
            let out = kubectl(&bed, websockets).args(["cp", &from, &to]).output().expect("kubectl");
            assert!(out.status.success(), "{way}: {out:?}");
        }
        assert!(std::fs::read(back.join("much")).expect("it came back") == much, "{way}");
        assert_eq!(std::fs::read(back.join("deep/er/little")).expect("it came back"), b"little", "{way}");

        bed.apply(&process("reader", &node, "read line; echo got $line; sleep 1000", ", stdin: true"));
        bed.wait("pod/reader", "condition=Ready");
        let mut attach = kubectl(&bed, websockets);
        attach.args(["attach", "-i", "reader"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = attach.spawn().expect("kubectl");
        child.stdin.as_mut().expect("piped").write_all(b"a line\n").expect("it reads");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let got = lines.map_while(Result::ok).find(|l| l.contains("got"));
        assert_eq!(got.as_deref(), Some("got a line"), "{way}");
        let _ = child.kill();
        let _ = child.wait();
        bed.kubectl("delete pod reader --timeout=60s");

        terminal(&bed, websockets, &way);
    }
    bed.kubectl("delete pods --all --timeout=60s");
}

/// A shell in a real terminal: it knows the terminal's size, follows its changes, and takes Ctrl-C for itself.
fn terminal(bed: &Bed, websockets: bool, way: &str) {
    let Ok(version) = std::process::Command::new("tmux").arg("-V").output() else {
        return eprintln!("SKIPPED: there is no tmux");
    };
    assert!(version.status.success());
    let socket = bed.dir.path().join("tmux");
    let tmux = |words: &[&str]| {
        let out = std::process::Command::new("tmux").arg("-S").arg(&socket).args(words).output().expect("tmux");
        assert!(out.status.success(), "{way}: tmux {words:?}: {out:?}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let command = kubectl(bed, websockets);
    let words: Vec<_> = command.get_args().map(|a| format!("'{}'", a.to_string_lossy())).collect();
    let program = command.get_program().to_string_lossy().into_owned();
    let line = format!(
        "env KUBECTL_REMOTE_COMMAND_WEBSOCKETS={websockets} {program} {} exec -it files -- sh",
        words.join(" ")
    );
    tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "97", "-y", "31", &line]);
    let shows = |what: &str| {
        crate::support::eventually(&format!("{way}: {what}"), || {
            tmux(&["capture-pane", "-p"]).contains(what).then_some(())
        });
    };
    tmux(&["send-keys", "echo size=$(stty size)", "Enter"]);
    shows("size=31 97");
    tmux(&["resize-window", "-x", "88", "-y", "24"]);
    // The size travels on its own.
    crate::support::eventually("the new size", || {
        tmux(&["send-keys", "echo size=$(stty size)", "Enter"]);
        std::thread::sleep(std::time::Duration::from_millis(200));
        tmux(&["capture-pane", "-p"]).contains("size=24 88").then_some(())
    });
    tmux(&["send-keys", "sleep 500", "Enter"]);
    std::thread::sleep(std::time::Duration::from_millis(500));
    tmux(&["send-keys", "C-c", ""]);
    tmux(&["send-keys", "echo still=here$((1+1))", "Enter"]);
    shows("still=here2");
    tmux(&["kill-server"]);
}

#[test]
fn two_hundred_connections_go_through_one_port_forward() {
    let mut bed = Bed::cluster_only();
    if bed.cluster.is_none() {
        return eprintln!("SKIPPED: restarts the API server");
    }
    bed.start_operator();
    let (node, name) = (bed.name("many"), bed.name("web"));
    bed.ready_node(&node, "");
    bed.apply(&pod(&name, &node, ""));
    bed.wait(&format!("pod/{name}"), "condition=Ready");
    for (websockets, spoken) in WAYS {
        speak(&mut bed, spoken);
        let way = format!("kubectl speaks WebSocket: {websockets}, the API server to the node: {spoken}");
        let mut command = kubectl(&bed, websockets);
        command.args(["port-forward", &format!("pod/{name}"), ":80", "--address", "127.0.0.1"]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("kubectl");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let line = lines.next().expect("it says where it listens").expect("a line");
        let address = line.split_whitespace().nth(2).expect("an address").to_owned();
        // It tells of every connection, and would wait for somebody to read it.
        std::thread::spawn(move || lines.for_each(drop));
        let asking: Vec<_> = (0..200)
            .map(|_| {
                let address = address.clone();
                std::thread::spawn(move || {
                    let mut stream = TcpStream::connect(address).expect("it listens");
                    stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).expect("a socket");
                    stream.write_all(b"GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n").expect("it reads");
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer).expect("an answer");
                    answer
                })
            })
            .collect();
        let answers: Vec<String> = asking.into_iter().map(|a| a.join().expect("an answer")).collect();
        let good = answers.iter().filter(|a| a.contains(&name)).count();
        assert_eq!(good, 200, "{way}");
        let _ = child.kill();
        let _ = child.wait();
    }
}
