//! A device for tests: an SSH server of this machine in a folder of its own, whose user is ours.
//!
//! Needs Debian's package `openssh-server`, and `busybox-static` for the shell of small devices. Where there is no
//! server, the tests say so and claim nothing; with `VNODE_REQUIRE_SSHD` they fail.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a device has to work with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Flavour {
    /// This machine's own programs.
    Machine,
    /// BusyBox alone, as on small devices.
    #[allow(dead_code, reason = "not every program of tests has both")]
    BusyBox,
}

/// A server that ends with its handle, and what runs below its folder.
pub struct Sshd {
    server: Option<Child>,
    dir: tempfile::TempDir,
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
}

impl Sshd {
    /// Starts a server, or says why the test cannot run.
    pub fn start(flavour: Flavour) -> Option<Self> {
        Self::with(flavour, "")
    }

    /// The same, with more lines in its configuration.
    pub fn with(flavour: Flavour, more: &str) -> Option<Self> {
        match Self::try_start(flavour, more) {
            Ok(server) => Some(server),
            Err(why) => {
                assert!(std::env::var_os("VNODE_REQUIRE_SSHD").is_none(), "no SSH server: {why}");
                eprintln!("\n*** SKIPPED, NOTHING WAS TESTED: no SSH server can be started here: {why}");
                eprintln!("*** apt-get install openssh-server busybox-static to have it tested\n");
                None
            }
        }
    }

    fn try_start(flavour: Flavour, more: &str) -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("vnode-sshd-").tempdir().map_err(|e| e.to_string())?;
        // Found now and taken soon after; a test that loses the race fails loudly.
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map_err(|e| e.to_string())?.port();
        let path = |name: &str| dir.path().join(name).display().to_string();
        for (name, kind) in [("host", "ed25519"), ("user", "ed25519"), ("rsa", "rsa")] {
            run(Command::new("ssh-keygen").args(["-q", "-t", kind, "-N", "", "-f", &path(name)]))?;
        }
        run(Command::new("sh").args(["-c", &format!("cat {0}/*.pub > {0}/authorized", dir.path().display())]))?;
        let search = match flavour {
            Flavour::Machine => std::env::var("PATH").unwrap_or_default(),
            Flavour::BusyBox => {
                std::fs::create_dir(path("bin")).map_err(|e| e.to_string())?;
                run(Command::new("busybox").args(["--install", "-s", &path("bin")]))?;
                path("bin")
            }
        };
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\n\
             UsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nMaxStartups 100\nSetEnv PATH={search} MOTD=x\n\
             {more}\n",
            path("host"),
            path("authorized"),
        );
        std::fs::write(path("config"), config).map_err(|e| e.to_string())?;
        // Where Debian's server looks for an empty folder; only root can make it, and only root's server needs it.
        let _ = std::fs::create_dir_all("/run/sshd");
        let mut sshd = Self { server: None, dir, port };
        sshd.serve()?;
        Ok(sshd)
    }

    /// Starts the server again after [`stop`](Self::stop).
    pub fn serve(&mut self) -> Result<(), String> {
        let log =
            std::fs::File::options().create(true).append(true).open(self.path("log")).map_err(|e| e.to_string())?;
        // It starts itself anew for each connection, so its path must be whole.
        let program =
            ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/sbin/sshd"].into_iter().find(|p| Path::new(p).exists());
        let mut command = Command::new(program.ok_or("there is no sshd")?);
        command
            .args(["-D", "-e", "-f"])
            .arg(self.path("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.server = Some(command.spawn().map_err(|e| format!("sshd: {e}"))?);
        let end = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if Instant::now() > end {
                return Err(std::fs::read_to_string(self.path("log")).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The folder on the device for pods.
    pub fn directory(&self) -> PathBuf {
        self.path("device")
    }

    /// Whose processes pods are.
    pub fn user(&self) -> String {
        let out = Command::new("id").arg("-un").output().expect("id");
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    /// The server's key, as a client pins it.
    pub fn host_key(&self) -> String {
        let text = std::fs::read_to_string(self.path("host.pub")).expect("a key");
        text.split(' ').take(2).collect::<Vec<_>>().join(" ")
    }

    /// A private key that is let in: `user` or `rsa`.
    pub fn key(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("a key")
    }

    /// The server and what it has for each connection, deepest first.
    pub fn processes(&self) -> Vec<u32> {
        let Some(server) = &self.server else { return Vec::new() };
        let (mut found, mut next) = (Vec::new(), vec![server.id()]);
        while let Some(pid) = next.pop() {
            found.push(pid);
            // Those of the server alone: what it has started is the device's.
            next.extend(children(pid).into_iter().filter(|c| name(*c).starts_with("sshd")));
        }
        found.reverse();
        found
    }

    /// Sends a signal to the server, and to what it has for each connection.
    pub fn signal(&self, signal: &str) {
        for pid in self.processes() {
            // It may have ended by itself.
            let _ = Command::new("kill").args([signal, &pid.to_string()]).status();
        }
    }

    /// Breaks all connections and answers no more.
    pub fn stop(&mut self) {
        self.signal("-CONT");
        self.signal("-KILL");
        if let Some(mut server) = self.server.take() {
            let _ = server.wait();
        }
    }

    /// The command lines of what runs for pods on the device.
    #[allow(dead_code, reason = "not every program of tests looks")]
    pub fn running(&self) -> Vec<String> {
        self.of_device().into_iter().map(|(_, line)| line).collect()
    }

    fn of_device(&self) -> Vec<(u32, String)> {
        let dir = self.directory().display().to_string();
        let all = std::fs::read_dir("/proc").expect("/proc").flatten();
        let pid = |e: std::fs::DirEntry| e.file_name().to_str()?.parse::<u32>().ok();
        let line = |pid: u32| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?.replace('\0', " ");
            let marked = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let marked = String::from_utf8_lossy(&marked).contains(&format!("VNODE_CONTAINER_ROOT={dir}/"));
            (marked || line.contains(&dir)).then_some((pid, line))
        };
        all.filter_map(pid).filter_map(line).collect()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop();
        // What a test that failed has left.
        for (pid, _) in self.of_device() {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
        }
    }
}

fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|p| p.parse().ok()).collect()
}

fn name(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}

fn run(command: &mut Command) -> Result<(), String> {
    let out = command.output().map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).trim().to_owned()) }
}
