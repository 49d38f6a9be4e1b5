//! A container engine for tests: Podman's service in a folder of its own, with an image made of busybox.
//!
//! Needs root, and Debian's packages `podman`, `runc` and `busybox-static`. Where there is no engine, the tests
//! say so and claim nothing; with `VNODE_REQUIRE_ENGINE` they fail.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The image that every engine of a test has.
pub const IMAGE: &str = "docker.io/library/busybox:test";

/// An engine that ends with its handle, and what runs on it.
pub struct Podman {
    service: Option<Child>,
    dir: tempfile::TempDir,
}

impl Podman {
    /// Starts an engine, or says why the test cannot run.
    pub fn start() -> Option<Self> {
        match Self::try_start() {
            Ok(engine) => Some(engine),
            Err(why) => {
                assert!(std::env::var_os("VNODE_REQUIRE_ENGINE").is_none(), "no container engine: {why}");
                eprintln!("\n*** SKIPPED, NOTHING WAS TESTED: no container engine can be started here: {why}");
                eprintln!("*** apt-get install podman runc busybox-static, and be root, to have it tested\n");
                None
            }
        }
    }

    fn try_start() -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("vnode-podman-").tempdir().map_err(|e| e.to_string())?;
        // Small limits, since a test may run where larger ones are not allowed.
        let config = "[containers]\ndefault_ulimits=[\"nofile=1024:1024\",\"nproc=4096:4096\"]\n\
                      [engine]\nruntime=\"runc\"\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"file\"\n";
        std::fs::write(dir.path().join("containers.conf"), config).map_err(|e| e.to_string())?;
        let mut engine = Self { service: None, dir };
        engine.import()?;
        let probe = engine.podman(&["run", "--rm", IMAGE, "true"])?;
        if !probe.status.success() {
            return Err(format!("a container does not run: {}", String::from_utf8_lossy(&probe.stderr).trim()));
        }
        engine.serve();
        Ok(engine)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("podman");
        let path = |name: &str| self.dir.path().join(name);
        command.env("CONTAINERS_CONF", path("containers.conf")).env("TMPDIR", self.dir.path());
        command.arg("--root").arg(path("root")).arg("--runroot").arg(path("run")).arg("--tmpdir").arg(path("tmp"));
        command.args(["--storage-driver", "vfs"]).stdin(Stdio::null());
        // Its monitors leave a file named `oom` where they are when a container had too much.
        command.current_dir(self.dir.path());
        command
    }

    /// Runs `podman` itself, on what the service has.
    pub fn podman(&self, args: &[&str]) -> Result<Output, String> {
        self.command().args(args).output().map_err(|e| format!("podman: {e}"))
    }

    /// An image of nothing but a busybox that needs no libraries.
    fn import(&self) -> Result<(), String> {
        let root = self.dir.path().join("image");
        let bin = root.join("bin");
        for dir in ["bin", "etc", "tmp"] {
            std::fs::create_dir_all(root.join(dir)).map_err(|e| e.to_string())?;
        }
        let source = ["/bin/busybox", "/usr/bin/busybox"].into_iter().map(Path::new).find(|p| p.exists());
        let source = source.ok_or("there is no busybox")?;
        std::fs::copy(source, bin.join("busybox")).map_err(|e| e.to_string())?;
        let list = Command::new(source).arg("--list").output().map_err(|e| e.to_string())?;
        for name in String::from_utf8_lossy(&list.stdout).lines().filter(|n| *n != "busybox") {
            std::os::unix::fs::symlink("busybox", bin.join(name)).map_err(|e| e.to_string())?;
        }
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").map_err(|e| e.to_string())?;
        let tar = self.dir.path().join("image.tar");
        let packed = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status();
        if !packed.is_ok_and(|s| s.success()) {
            return Err("tar does not work".into());
        }
        let imported = self.podman(&["import", &tar.display().to_string(), IMAGE])?;
        if imported.status.success() {
            return Ok(());
        }
        Err(format!("podman import: {}", String::from_utf8_lossy(&imported.stderr).trim()))
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("engine.sock")
    }

    /// `host` of a VirtualNode.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Starts the service, the old one being gone.
    pub fn serve(&mut self) {
        let _ = std::fs::remove_file(self.socket());
        let log = std::fs::File::create(self.dir.path().join("service.log")).expect("a log file");
        let mut command = self.command();
        command.args(["system", "service", "--time=0", &self.host()]).stdout(Stdio::null()).stderr(log);
        self.service = Some(command.spawn().expect("podman starts"));
        let end = Instant::now() + Duration::from_secs(30);
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            assert!(Instant::now() < end, "the engine does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends the service; containers run on.
    pub fn stop(&mut self) {
        if let Some(mut service) = self.service.take() {
            let _ = service.kill();
            let _ = service.wait();
        }
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            // Not its events: they are so many that nobody would find what the test said.
            if let Ok(out) = self.podman(&["ps", "-a"]) {
                eprintln!("--- podman ps ---\n{}", String::from_utf8_lossy(&out.stdout));
            }
        }
        // Podman can wait for ever for a lock that a killed one held.
        let mut command = Command::new("timeout");
        let podman = self.command();
        command.args(["--kill-after=1", "30"]).arg(podman.get_program()).args(podman.get_args());
        command.envs(podman.get_envs().filter_map(|(k, v)| Some((k, v?)))).stdin(Stdio::null());
        let _ = command.args(["rm", "--all", "--force", "--time=0", "--volumes"]).output();
    }
}
