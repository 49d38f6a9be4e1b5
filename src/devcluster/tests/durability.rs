//! The data directory: what was acknowledged outlives `kill -9` and a full disk.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{Client, DEADLINE};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// The example program, which cargo builds along with the tests.
fn program() -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.join("examples/serve")
}

struct Server {
    process: Child,
    client: Client,
}

impl Server {
    /// Starts a cluster; `limit` is what a file may grow to, in KiB.
    fn start(directory: &Path, limit: Option<u32>) -> Self {
        let kubeconfig = directory.join("kubeconfig");
        let limit = limit.map_or(String::new(), |kib| format!("trap '' XFSZ; ulimit -f {kib}; "));
        let script = format!("{limit}exec \"$0\" \"$1\" 127.0.0.1:0 \"$2\"");
        let mut process = Command::new("bash")
            .args(["-c", &script])
            .args([&program(), &kubeconfig, &directory.join("data")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("serves"), "{said}");
        let client = Client::new(&std::fs::read_to_string(&kubeconfig).unwrap());
        Self { process, client }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Child::kill sends SIGKILL.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": value}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_by_kill_minus_nine_under_load() {
    let directory = tempfile::tempdir().unwrap();
    let mut wanted: BTreeMap<String, Option<String>> = BTreeMap::new();
    for round in 0..3 {
        let mut server = Server::start(directory.path(), None);
        for (name, value) in &wanted {
            let answer = server.client.get(&format!("{MAPS}/{name}")).await;
            match value {
                Some(value) => assert_eq!(answer.json()["data"]["k"], **value, "{name} in round {round}"),
                None => assert_eq!(answer.code, 404, "{name} in round {round}"),
            }
        }
        let acknowledged = Arc::new(Mutex::new(BTreeMap::new()));
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (client, acknowledged) = (server.client.clone(), acknowledged.clone());
                tokio::spawn(async move {
                    let note = |name: &str, value| acknowledged.lock().unwrap().insert(name.to_owned(), value);
                    for n in 0.. {
                        let name = format!("r{round}-w{writer}-{n}");
                        let path = format!("{MAPS}/{name}");
                        let merge = r#"{"data":{"k":"2"}}"#;
                        match client
                            .try_send(
                                "POST",
                                MAPS,
                                &[("content-type", "application/json")],
                                map(&name, "1").to_string(),
                            )
                            .await
                        {
                            Ok(answer) if answer.code == 201 => drop(note(&name, Some("1".to_owned()))),
                            _ => return,
                        }
                        if n % 2 == 0 {
                            // While a write is on its way, both outcomes are right: nothing is claimed of it.
                            acknowledged.lock().unwrap().remove(&name);
                            let media = [("content-type", "application/merge-patch+json")];
                            match client.try_send("PATCH", &path, &media, merge).await {
                                Ok(answer) if answer.code == 200 => drop(note(&name, Some("2".to_owned()))),
                                _ => return,
                            }
                        }
                        if n % 5 == 0 {
                            acknowledged.lock().unwrap().remove(&name);
                            match client.try_send("DELETE", &path, &[], "").await {
                                Ok(answer) if answer.code == 200 => drop(note(&name, None)),
                                _ => return,
                            }
                        }
                    }
                })
            })
            .collect();
        let enough = async {
            while acknowledged.lock().unwrap().len() < 60 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(DEADLINE, enough).await.expect("writes are acknowledged");
        server.process.kill().unwrap();
        for writer in writers {
            tokio::time::timeout(DEADLINE, writer).await.expect("it ends").unwrap();
        }
        wanted.append(&mut acknowledged.lock().unwrap());
    }
    assert!(wanted.len() >= 180);
}

#[tokio::test]
async fn a_full_disk_is_an_error_for_the_client_and_no_loss() {
    let directory = tempfile::tempdir().unwrap();
    let mut kept = Vec::new();
    {
        let server = Server::start(directory.path(), Some(400));
        for n in 0..100 {
            let answer = server.client.post(MAPS, &map(&format!("m{n}"), &"x".repeat(20 << 10))).await;
            match answer.code {
                201 => kept.push(n),
                500 => {
                    assert!(answer.message().contains("could not be made durable"), "{}", answer.text());
                    // Reads go on, and the write has not happened.
                    assert_eq!(server.client.get(&format!("{MAPS}/m{n}")).await.code, 404);
                    break;
                }
                other => panic!("{other}: {}", answer.text()),
            }
        }
        assert!(!kept.is_empty() && kept.len() < 100, "{}", kept.len());
        // What still fits is still written, behind whole records only.
        assert_eq!(server.client.post(MAPS, &map("small", "1")).await.code, 201);
    }
    let server = Server::start(directory.path(), None);
    for n in &kept {
        assert_eq!(server.client.get(&format!("{MAPS}/m{n}")).await.code, 200, "m{n}");
    }
    assert_eq!(server.client.get(&format!("{MAPS}/small")).await.code, 200);
    assert_eq!(server.client.post(MAPS, &map("again", "1")).await.code, 201);
}
