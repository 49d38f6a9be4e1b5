//! A cluster and an operator for the tests, each a process of its own, driven with `kubectl`.
//!
//! By default the cluster is the embedded one. With `VNODE_E2E_KUBECONFIG` it is whatever that file names:
//! then the tests that stop or restart the API server say that they are skipped, and all objects carry
//! names of this run and are removed again.

pub mod objects;
#[cfg(feature = "docker")]
pub mod podman;
#[cfg(feature = "ssh")]
pub mod sshd;

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long something that takes a second on an idle machine may take on a busy one.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test: `VNODE_BIN`, or the one that cargo built for this test.
pub fn vnode_binary() -> PathBuf {
    std::env::var_os("VNODE_BIN").map_or_else(|| env!("CARGO_BIN_EXE_vnode").into(), PathBuf::from)
}

/// A process that is killed with its handle.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(mut command: Command, log: &Path) -> Self {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("a log file");
        let child = command
            .stdin(Stdio::null())
            .stderr(file)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?} does not start: {e}"));
        Self { child, log: log.into() }
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|s| s.success()), "{name} is sent");
    }

    /// SIGKILL: no chance to clean up.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, then waits for a clean end and returns its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.kill();
        None
    }

    /// True while it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Everything it has written to standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(60).collect();
            eprintln!("--- {} ---", self.log.display());
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}

/// A cluster, an operator on it, and a folder for files.
pub struct Bed {
    /// The API server, unless the cluster is somebody else's.
    pub cluster: Option<Process>,
    /// The operator.
    pub operator: Option<Process>,
    /// Files of this bed.
    pub dir: tempfile::TempDir,
    /// Part of every name that the tests make.
    pub id: String,
    /// Where the pods are.
    pub namespace: String,
    /// More of the operators' environment.
    pub variables: Vec<(&'static str, String)>,
    /// On somebody else's cluster the beds take turns: two operators would run the same nodes.
    _turn: Option<MutexGuard<'static, ()>>,
    kubeconfig: PathBuf,
    listen: String,
    ports: (u16, u16),
}

static TURN: Mutex<()> = Mutex::new(());
static BEDS: AtomicU32 = AtomicU32::new(0);
static PORTS: AtomicU16 = AtomicU16::new(0);

/// A range of 61 ports that no other bed of this process uses.
fn port_range() -> (u16, u16) {
    // Test processes run one after the other; within one, each bed has a range of its own.
    let first = 21_000 + PORTS.fetch_add(1, Ordering::SeqCst) % 100 * 80;
    (first, first + 60)
}

impl Bed {
    /// A cluster with an operator.
    pub fn new() -> Self {
        Self::with_operator_flags(&[])
    }

    /// A cluster with an operator that gets more flags.
    pub fn with_operator_flags(flags: &[&str]) -> Self {
        let mut bed = Self::cluster_only();
        bed.start_operator_with(flags);
        bed
    }

    /// A cluster of our own that can be stopped and started, or `None` when the cluster is somebody else's.
    pub fn own() -> Option<Self> {
        (!is_foreign("only the embedded cluster can be stopped")).then(Self::new)
    }

    /// A cluster without an operator.
    pub fn cluster_only() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let id = format!("e{}x{}", std::process::id(), BEDS.fetch_add(1, Ordering::SeqCst));
        let foreign = foreign_cluster();
        let turn = || TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bed = Self {
            _turn: foreign.is_some().then(turn),
            namespace: if foreign.is_some() { format!("vnode-{id}") } else { "default".into() },
            cluster: None,
            operator: None,
            variables: Vec::new(),
            kubeconfig: dir.path().join("kubeconfig"),
            listen: "127.0.0.1:0".into(),
            ports: port_range(),
            dir,
            id,
        };
        match foreign {
            Some(file) => {
                bed.kubeconfig = file.into();
                let crds = Command::new(vnode_binary()).arg("crd").output().expect("vnode crd");
                bed.apply(&String::from_utf8_lossy(&crds.stdout));
                bed.wait("crd/virtualnodes.vnode.dev", "condition=Established");
                bed.wait("crd/virtualnodesets.vnode.dev", "condition=Established");
                for name in [&bed.namespace, "vnode-system"] {
                    bed.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n"));
                }
                eventually("the namespace's account", || bed.get("serviceaccount/default"));
            }
            None => bed.start_cluster(),
        }
        bed
    }

    /// Starts the API server, on the same port and with the same state as before if there was one.
    pub fn start_cluster(&mut self) {
        self.start_cluster_with(&[]);
    }

    /// Starts the API server with more flags.
    pub fn start_cluster_with(&mut self, flags: &[&str]) {
        let mut command = Command::new(vnode_binary());
        command.args(["dev", "--cluster-only", "--faults", "--listen", &self.listen]).args(flags);
        command.arg("--kubeconfig-out").arg(&self.kubeconfig).arg("--data-dir").arg(self.dir.path().join("state"));
        let mut process = Process::start(command, &self.dir.path().join("cluster.log"));
        let out = process.child.stdout.take().expect("piped");
        let mut lines = BufReader::new(out).lines();
        let ready = lines.by_ref().map_while(Result::ok).find_map(|l| l.split("https://").nth(1).map(str::to_owned));
        let Some(address) = ready else { panic!("the cluster did not start:\n{}", process.log()) };
        self.listen = address.split_whitespace().next().unwrap_or_default().trim_end_matches(['/', '.']).into();
        // Somebody must read what it prints, or it would block.
        std::thread::spawn(move || lines.for_each(drop));
        self.cluster = Some(process);
    }

    /// Starts an operator, the old one being gone.
    pub fn start_operator(&mut self) {
        self.start_operator_with(&[]);
    }

    /// Starts an operator with more flags.
    pub fn start_operator_with(&mut self, flags: &[&str]) {
        let mut command = Command::new(vnode_binary());
        command.arg("operator").arg("--kubeconfig").arg(&self.kubeconfig);
        command.arg("--kubelet-ports").arg(format!("{}-{}", self.ports.0, self.ports.1));
        command.args([
            "--node-ip",
            "127.0.0.1",
            "--kubelet-bind-address",
            "127.0.0.1",
            "--metrics-addr",
            "127.0.0.1:0",
        ]);
        command.args(["--namespace", "vnode-system", "--identity", "e2e"]).args(flags);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        let mut process = Process::start(command, &self.dir.path().join("operator.log"));
        let out = process.child.stdout.take().expect("piped");
        std::thread::spawn(move || BufReader::new(out).lines().for_each(drop));
        self.operator = Some(process);
    }

    /// SIGKILL for the operator: what it had written to standard error.
    pub fn kill_operator(&mut self) -> String {
        let mut operator = self.operator.take().expect("an operator of our own");
        operator.kill();
        operator.log()
    }

    /// The file that names this cluster.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Starts an operator beside others, with a name and ports of its own.
    pub fn start_replica(&self, identity: &str) -> Process {
        self.start_replica_at(identity, "127.0.0.1")
    }

    /// The same at an address of its own, as on another machine.
    pub fn start_replica_at(&self, identity: &str, address: &str) -> Process {
        self.replica(identity, &self.kubeconfig, address, &[])
    }

    /// The same with variables.
    pub fn start_replica_with(&self, identity: &str, variables: &[(&str, &str)]) -> Process {
        self.replica(identity, &self.kubeconfig, "127.0.0.1", variables)
    }

    /// The same as an administrator of this name, so that the development cluster can tell it from others.
    pub fn start_replica_as(&self, identity: &str, user: &str) -> Process {
        let mut config: Value = serde_json::from_str(&self.kubectl("config view --raw -o json")).expect("JSON");
        for entry in config["users"].as_array_mut().expect("users") {
            entry["user"]["as"] = user.into();
            entry["user"]["as-groups"] = serde_json::json!(["system:masters"]);
        }
        let path = self.dir.path().join(format!("{user}.kubeconfig"));
        std::fs::write(&path, config.to_string()).expect("a file");
        self.replica(identity, &path, "127.0.0.1", &[])
    }

    fn replica(&self, identity: &str, kubeconfig: &Path, address: &str, variables: &[(&str, &str)]) -> Process {
        let (first, last) = port_range();
        let mut command = Command::new(vnode_binary());
        command.envs(variables.iter().copied());
        command.arg("operator").arg("--kubeconfig").arg(kubeconfig);
        command.args(["--kubelet-ports", &format!("{first}-{last}"), "--node-ip", address]);
        command.args(["--kubelet-bind-address", address, "--metrics-addr", "127.0.0.1:0"]);
        command.args(["--namespace", "vnode-system", "--identity", identity]);
        let mut process = Process::start(command, &self.dir.path().join(format!("{identity}.log")));
        let out = process.child.stdout.take().expect("piped");
        std::thread::spawn(move || BufReader::new(out).lines().for_each(drop));
        process
    }

    /// Starts `vnode node` with these flags and variables.
    pub fn start_node(&self, name: &str, flags: &[&str], variables: &[(&str, &str)]) -> Process {
        let mut command = Command::new(vnode_binary());
        command.args(["node", "--nodename", name, "--metrics-addr", "127.0.0.1:0"]).args(flags);
        command.env("KUBECONFIG", &self.kubeconfig).envs(variables.iter().copied());
        let mut process = Process::start(command, &self.dir.path().join(format!("{name}.log")));
        let out = process.child.stdout.take().expect("piped");
        std::thread::spawn(move || BufReader::new(out).lines().for_each(drop));
        process
    }

    /// A name that is this bed's own.
    pub fn name(&self, name: &str) -> String {
        format!("{name}-{}", self.id)
    }

    /// A port of this bed's range that the operator gives out last.
    pub fn spare_port(&self) -> u16 {
        self.ports.1
    }

    /// `kubectl`, with this cluster's kubeconfig.
    pub fn command(&self) -> Command {
        let kubectl = std::env::var_os("VNODE_KUBECTL").unwrap_or_else(|| "kubectl".into());
        let mut command = Command::new(kubectl);
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--cache-dir").arg(self.dir.path().join("cache"));
        command.arg("--namespace").arg(&self.namespace);
        command
    }

    /// Runs `kubectl` with words split at spaces.
    pub fn try_kubectl(&self, words: &str) -> Output {
        self.command().args(words.split_whitespace()).stdin(Stdio::null()).output().expect("kubectl is on the PATH")
    }

    /// Runs `kubectl`, which must succeed, and returns what it printed.
    pub fn kubectl(&self, words: &str) -> String {
        let out = self.try_kubectl(words);
        assert!(out.status.success(), "kubectl {words}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Runs `kubectl` again and again until it succeeds.
    pub fn kubectl_at_last(&self, words: &str) {
        let succeeds = || {
            let out = self.try_kubectl(words);
            if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
        };
        if let Err(said) = until(succeeds) {
            panic!("kubectl {words}: after {PATIENCE:?} still: {said}");
        }
    }

    /// `kubectl exec`
    pub fn exec(&self, words: &[&str]) -> Output {
        exec_whole(|| {
            self.command().arg("exec").args(words).stdin(Stdio::null()).output().expect("kubectl is on the PATH")
        })
    }

    /// `kubectl get … -o json`, or `None` when there is no such thing.
    pub fn get(&self, what: &str) -> Option<Value> {
        let out = self.try_kubectl(&format!("get {what} -o json"));
        out.status.success().then(|| serde_json::from_slice(&out.stdout).expect("kubectl prints JSON"))
    }

    /// `kubectl apply -f -`, which must succeed.
    pub fn apply(&self, manifest: &str) -> String {
        match self.try_apply(manifest) {
            Ok(said) => said,
            Err(said) => panic!("kubectl apply: {said}\n{manifest}"),
        }
    }

    /// `kubectl apply -f -`: what it printed, or what it complained of.
    pub fn try_apply(&self, manifest: &str) -> Result<String, String> {
        self.with_input("apply -f -", manifest)
    }

    /// Makes the development cluster fail; see `docs/development-cluster.md`.
    pub fn fault(&self, path: &str, body: &Value) {
        let said = self.with_input(&format!("create --raw /debug/faults{path} -f -"), &body.to_string());
        assert!(said.is_ok(), "{path} {body}: {said:?}");
    }

    fn with_input(&self, words: &str, input: &str) -> Result<String, String> {
        use std::io::Write as _;
        let mut command = self.command();
        command.args(words.split_whitespace()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl is on the PATH");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("kubectl reads");
        let out = child.wait_with_output().expect("kubectl ends");
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
    }

    /// A simulated node with more of a spec, in YAML lines of two spaces; waits until it is Ready.
    pub fn ready_node(&self, name: &str, spec: &str) {
        self.apply(&virtual_node(name, spec));
        self.wait(&format!("virtualnode/{name}"), "condition=Ready");
        self.wait(&format!("node/{name}"), "condition=Ready");
    }

    /// Asks a node's kubelet API directly, as a monitoring system would: with a token and rights of its own.
    pub fn ask_node(&self, node: &str, path: &str) -> String {
        let account = self.name("monitor");
        if self.get(&format!("serviceaccount/{account}")).is_none() {
            self.kubectl(&format!("create serviceaccount {account}"));
            self.apply(&format!(
                "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: {account}}}\n\
                 roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:kubelet-api-admin}}\n\
                 subjects: [{{kind: ServiceAccount, name: {account}, namespace: {}}}]\n",
                self.namespace
            ));
        }
        let token = self.kubectl(&format!("create token {account}"));
        let endpoint = self.kubectl(&format!("get vn {node} -o jsonpath={{.status.kubelet.endpoint}}"));
        let out = Command::new("curl")
            .args(["-sk", "-m", "20", "-H", &format!("Authorization: Bearer {}", token.trim())])
            .arg(format!("https://{endpoint}/{path}"))
            .output()
            .expect("curl is on the PATH");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// `kubectl wait`
    pub fn wait(&self, what: &str, for_: &str) {
        eventually(&format!("{what} exists"), || self.get(what));
        let out = self.try_kubectl(&format!("wait {what} --for={for_} --timeout={}s", PATIENCE.as_secs()));
        if !out.status.success() {
            let state = self.try_kubectl(&format!("get {what} -o yaml"));
            panic!(
                "{what} is not {for_}: {}\n{}",
                String::from_utf8_lossy(&out.stderr),
                String::from_utf8_lossy(&state.stdout)
            );
        }
    }

    /// Waits until a pod is in a phase.
    pub fn wait_phase(&self, pod: &str, phase: &str) {
        self.wait(&format!("pod/{pod}"), &format!("jsonpath={{.status.phase}}={phase}"));
    }
}

/// The kubeconfig of somebody else's cluster, when the tests are to use that.
fn foreign_cluster() -> Option<OsString> {
    std::env::var_os("VNODE_E2E_KUBECONFIG")
}

/// Whether the cluster is somebody else's, on which this is then said not to be tested.
pub fn is_foreign(why: &str) -> bool {
    let foreign = foreign_cluster().is_some();
    if foreign {
        eprintln!("*** SKIPPED, NOTHING WAS TESTED: {why}");
    }
    foreign
}

impl Drop for Bed {
    fn drop(&mut self) {
        if self._turn.is_some() {
            let _ = self.try_kubectl(&format!("delete namespace {} --wait=false", self.namespace));
            let _ = self.try_kubectl(&format!("delete clusterrolebinding {} --ignore-not-found", self.name("monitor")));
            let _ = self.try_kubectl("delete virtualnodes --all --timeout=60s");
        }
    }
}

/// A VirtualNode of type mock.
pub fn virtual_node(name: &str, spec: &str) -> String {
    let provider = if spec.contains("provider:") { "" } else { "  provider: {type: mock, mock: {}}\n" };
    format!("apiVersion: vnode.dev/v1alpha1\nkind: VirtualNode\nmetadata:\n  name: {name}\nspec:\n{provider}{spec}\n")
}

/// A pod that goes to one node.
pub fn pod(name: &str, node: &str, annotations: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  annotations: {{{annotations}}}\nspec:\n  \
         nodeSelector: {{kubernetes.io/hostname: {node}}}\n  \
         tolerations: [{{key: virtual-kubelet.io/provider, operator: Exists}}]\n  \
         containers: [{{name: main, image: example/app:1}}]\n---\n"
    )
}

/// Waits for something to come true and returns it.
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    until(|| check().ok_or(())).unwrap_or_else(|()| panic!("after {PATIENCE:?} still not: {what}"))
}

/// Waits for something to come true and returns it, or the last complaint.
fn until<T, E>(mut check: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let end = Instant::now() + PATIENCE;
    loop {
        match check() {
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(200)),
            found => return found,
        }
    }
}

/// Whether `kubectl` says on standard error that it lost a part of a stream. Some (1.32 is one) drop what comes over a
/// WebSocket before they have made their streams: a busy machine and a quick command are enough.
pub fn lost_output(stderr: &str) -> bool {
    stderr.contains("Unknown stream id")
}

/// Runs a `kubectl exec` until it has lost none of its output; see [`lost_output`].
pub fn exec_whole(run: impl Fn() -> Output) -> Output {
    let whole = || {
        let out = run();
        if lost_output(&String::from_utf8_lossy(&out.stderr)) { Err(out) } else { Ok(out) }
    };
    until(whole).unwrap_or_else(|lost| lost)
}

/// The condition of a type.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

/// True when the condition is there with this status and reason.
pub fn has_condition(object: &Value, kind: &str, status: &str, reason: &str) -> bool {
    condition(object, kind).is_some_and(|c| c["status"] == status && c["reason"] == reason)
}
