//! Every command of the README and of `docs/` that is marked `sh` works, against the development cluster.
//!
//! A block is run by one shell, in the repository's folder, with `vnode` on the PATH and `KUBECONFIG` set; it fails with
//! its first command that fails. Blocks of a file run in order on the sample fleet, which each file gets anew. What needs
//! other tools or another cluster is marked `console`, or `sh,ignore` with the reason after it.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{PATIENCE, is_foreign, vnode_binary};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The blocks of a file with the line that each begins at.
fn blocks(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, bool, String)> = None;
    for (number, line) in text.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => open = Some((number + 1, info.trim() == "sh", String::new())),
            (Some(_), Some(_)) => {
                if let Some((at, true, body)) = open.take() {
                    found.push((at, body));
                }
            }
            (Some((_, _, body)), None) => {
                body.push_str(line);
                body.push('\n');
            }
            (None, None) => {}
        }
    }
    found
}

fn files() -> Vec<PathBuf> {
    let mut files = vec![Path::new(ROOT).join("README.md")];
    let docs = std::fs::read_dir(Path::new(ROOT).join("docs")).expect("docs/");
    files.extend(docs.map(|f| f.expect("a file").path()).filter(|f| f.extension().is_some_and(|e| e == "md")));
    files.sort();
    files
}

#[test]
fn every_command_of_the_documentation_works() {
    if is_foreign("the commands expect the sample fleet of the development cluster") {
        return;
    }
    let mut failures = Vec::new();
    let mut ran = 0;
    for file in files() {
        let text = std::fs::read_to_string(&file).expect("a text");
        let blocks = blocks(&text);
        if blocks.is_empty() {
            continue;
        }
        let name = file.strip_prefix(ROOT).expect("below the root").display().to_string();
        let dir = tempfile::tempdir().expect("a folder");
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).expect("a folder");
        for program in ["vnode", "kubectl-vnode"] {
            std::os::unix::fs::symlink(vnode_binary(), bin.join(program)).expect("a link");
        }
        let kubeconfig = dir.path().join("kubeconfig");
        let mut dev = start(&kubeconfig);
        for (line, block) in blocks {
            ran += 1;
            let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
            let out = Command::new("timeout")
                .args(["180", "bash", "-euo", "pipefail", "-c", &block])
                .current_dir(ROOT)
                .env("PATH", path)
                .env("KUBECONFIG", &kubeconfig)
                .stdin(Stdio::null())
                .output()
                .expect("bash is on the PATH");
            if !out.status.success() {
                let said = String::from_utf8_lossy(&out.stderr);
                failures.push(format!("{name}:{line}: {}\n{block}{said}", out.status));
            }
        }
        let _ = Command::new("kill").args(["-INT", &dev.id().to_string()]).status();
        let _ = dev.wait();
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(ran >= 8, "only {ran} blocks were found");
}

/// `vnode dev` with the sample fleet, ready.
fn start(kubeconfig: &Path) -> std::process::Child {
    let mut dev = Command::new(vnode_binary())
        .args(["dev", "--listen", "127.0.0.1:0", "--kubelet-ports", "29100-29199", "--kubeconfig-out"])
        .arg(kubeconfig)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("vnode dev");
    let mut lines = BufReader::new(dev.stdout.take().expect("piped")).lines();
    lines.by_ref().map_while(Result::ok).find(|l| l.contains("Ctrl-C")).expect("it starts");
    std::thread::spawn(move || lines.for_each(drop));
    let timeout = format!("--timeout={}s", PATIENCE.as_secs());
    for what in [["virtualnodes", "--all"], ["deployment/hello", "--for=condition=Available"]] {
        let mut wait = Command::new("kubectl");
        wait.arg("--kubeconfig").arg(kubeconfig).arg("wait").args(what).arg(&timeout);
        if what[1] == "--all" {
            wait.arg("--for=condition=Ready");
        }
        assert!(wait.status().expect("kubectl").success(), "the sample fleet is ready");
    }
    dev
}

#[test]
fn links_within_the_documentation_lead_somewhere() {
    let mut broken = Vec::new();
    let mut all = files();
    for more in ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "CODE_OF_CONDUCT.md"] {
        all.push(Path::new(ROOT).join(more));
    }
    for file in all {
        let text = std::fs::read_to_string(&file).expect("a text");
        for rest in text.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default().split('#').next().unwrap_or_default();
            let elsewhere =
                target.is_empty() || target.contains("://") || target.contains(' ') || target.contains('\n');
            if !elsewhere && !file.parent().expect("a folder").join(target).exists() {
                broken.push(format!("{}: {target}", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
