//! `vnode dev` does what it says.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use crate::support::{PATIENCE, vnode_binary};

#[test]
fn dev_gives_a_running_fleet_and_stops_cleanly() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config");
    let mut dev = Command::new(vnode_binary())
        .args(["dev", "--listen", "127.0.0.1:0", "--kubeconfig-out"])
        .arg(&file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("vnode dev");
    let mut said = String::new();
    let mut lines = BufReader::new(dev.stdout.take().expect("piped")).lines();
    for line in lines.by_ref().map_while(Result::ok) {
        said += &line;
        said.push('\n');
        if line.contains("Ctrl-C") {
            break;
        }
    }
    assert!(said.contains("kubectl get virtualnodes"), "it says what to try:\n{said}");
    let kubectl = |words: &str| {
        let out = Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(&file)
            .args(words.split_whitespace())
            .output()
            .expect("kubectl");
        assert!(out.status.success(), "kubectl {words}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    kubectl(&format!("wait virtualnodes --all --for=condition=Ready --timeout={}s", PATIENCE.as_secs()));
    assert!(kubectl("get virtualnodes").lines().count() > 2, "the sample fleet");
    kubectl(&format!("wait pods --all --for=condition=Ready --timeout={}s", PATIENCE.as_secs()));

    let _ = Command::new("kill").args(["-INT", &dev.id().to_string()]).status();
    let status = dev.wait().expect("it ends");
    assert!(status.success(), "Ctrl-C is a clean end: {status}");
}

#[test]
fn dev_does_not_overwrite_a_kubeconfig_that_it_did_not_write() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config");
    std::fs::write(&file, "precious").expect("a file");
    let out = Command::new(vnode_binary())
        .args(["dev", "--listen", "127.0.0.1:0", "--kubeconfig-out"])
        .arg(&file)
        .output()
        .expect("vnode dev");
    assert!(!out.status.success());
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("--kubeconfig-out"), "it names the flag: {said}");
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), "precious");
}

#[test]
fn the_crds_in_the_repository_are_those_of_the_binary() {
    let out = Command::new(vnode_binary()).arg("crd").output().expect("vnode crd");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let documents: Vec<_> = said.split("---\n").collect();
    let names = ["virtualnodes", "virtualnodesets"];
    assert_eq!(documents.len(), names.len() + 1, "a document for each file");
    for (name, document) in names.iter().zip(&documents[1..]) {
        let file = format!("{}/crds/vnode.dev_{name}.yaml", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("VNODE_UPDATE_CRDS").is_some() {
            std::fs::write(&file, format!("---\n{document}")).expect("it can be written");
        }
        let kept = std::fs::read_to_string(&file).expect("the CRD");
        assert_eq!(kept, format!("---\n{document}"), "run: VNODE_UPDATE_CRDS=1 cargo test --test e2e the_crds_in");
    }
}
