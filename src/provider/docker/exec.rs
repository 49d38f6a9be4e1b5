//! Commands in containers, and their main processes: exec and attach.

use std::sync::Arc;
use std::time::Duration;

use bollard::query_parameters::{ResizeContainerTTYOptions, ResizeExecOptions};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use super::client::Failed;
use super::engine::{DockerEngine, Inner};
use super::{machine, names, session};
use crate::provider::runtime::{ContainerRef, ContainerState};
use crate::provider::{ExitStatus, ProviderError, Result, SessionIo};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct FoundExec {
    running: bool,
    exit_code: Option<i32>,
    pid: i32,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Made {
    id: String,
}

/// Ends a command whose caller is gone, where that can be done.
struct Command {
    inner: Arc<Inner>,
    exec: String,
    container: String,
    over: bool,
}

impl Drop for Command {
    fn drop(&mut self) {
        if self.over || !self.inner.is_local() {
            return;
        }
        let (inner, exec, container) = (self.inner.clone(), self.exec.clone(), self.container.clone());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            if let Ok(found) = inner.client.get::<FoundExec>(&format!("/exec/{exec}/json")).await
                && found.running
            {
                machine::kill(found.pid, &container);
            }
        });
    }
}

impl DockerEngine {
    /// The exit code of a command whose output has ended.
    async fn exec_code(&self, id: &str) -> Result<i32> {
        let mut found = FoundExec::default();
        for wait in [0, 20, 50, 100, 200, 500, 1000, 2000, 5000] {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            let asked = self.client.get(&format!("/exec/{id}/json")).await;
            found = asked.map_err(|e: Failed| e.asking("asking for an exit code"))?;
            if !found.running {
                return Ok(found.exit_code.unwrap_or_default());
            }
        }
        Err(ProviderError::unavailable(format!("a command closed its output and runs on (pid {})", found.pid)))
    }

    /// Runs a command in a container.
    pub(super) async fn run(
        &self,
        container: &ContainerRef,
        command: &[String],
        mut io: SessionIo,
    ) -> Result<ExitStatus> {
        let session = self.session().await?;
        let name = names::container(container);
        let request = json!({
            "AttachStdin": io.stdin.is_some(),
            "AttachStdout": true,
            "AttachStderr": !io.tty,
            "Tty": io.tty,
            "Cmd": command,
        });
        let made = self.client.post::<Made>(&format!("/containers/{name}/exec"), &request).await;
        let made = made.map_err(|e| match e {
            Failed::Answer(404 | 409, _) => ProviderError::NotFound(format!("running {container}")),
            other => other.asking("exec"),
        })?;
        let mut running =
            Command { inner: self.0.clone(), exec: made.id.clone(), container: container.id.clone(), over: false };
        let start = Bytes::from(json!({"Detach": false, "Tty": io.tty}).to_string());
        let connection = match self.client.hijack(&format!("/exec/{}/start", made.id), start).await {
            Ok(connection) => connection,
            Err(Failed::Answer(_, message)) if not_started(&message).is_some() => {
                running.over = true;
                if let Some(stderr) = &mut io.stderr {
                    // A client that is gone misses nothing.
                    let _ = stderr.write_all(format!("{message}\n").as_bytes()).await;
                }
                return Ok(ExitStatus { code: not_started(&message).unwrap_or(126) });
            }
            Err(error) => return Err(error.asking("exec")),
        };
        let (tty, id) = (io.tty, made.id.clone());
        let carried = session::carry(connection, io, tty, |size| {
            let (docker, id) = (session.docker.clone(), id.clone());
            Box::pin(async move {
                let options = ResizeExecOptions { h: size.height.into(), w: size.width.into() };
                // It may have ended; a size is no reason to fail.
                let _ = docker.resize_exec(&id, options).await;
            })
        });
        carried.await.map_err(|e| ProviderError::unavailable(format!("exec: {e}")))?;
        let code = self.exec_code(&made.id).await?;
        running.over = true;
        Ok(ExitStatus { code })
    }

    /// Joins the main process of a container.
    pub(super) async fn join(&self, container: &ContainerRef, io: SessionIo) -> Result<ExitStatus> {
        let session = self.session().await?;
        let found = self.found(container).await?;
        let name = names::container(container);
        let path =
            format!("/containers/{name}/attach?stream=true&stdout=true&stderr=true&stdin={}", io.stdin.is_some());
        let connection = self.client.hijack(&path, Bytes::new()).await.map_err(|e| match e {
            Failed::Answer(404 | 409, _) => ProviderError::NotFound(format!("running {container}")),
            other => other.asking("attach"),
        })?;
        // How it speaks is the container's to say, whatever the client has.
        let tty = found.config.tty;
        let carried = session::carry(connection, io, tty, |size| {
            let (docker, name) = (session.docker.clone(), name.clone());
            Box::pin(async move {
                let options = ResizeContainerTTYOptions { h: size.height.into(), w: size.width.into() };
                // It may have ended; a size is no reason to fail.
                let _ = docker.resize_container_tty(&name, options).await;
            })
        });
        carried.await.map_err(|e| ProviderError::unavailable(format!("attach: {e}")))?;
        let code = match self.found(container).await.map(|f| f.state.of_container()) {
            Ok(ContainerState::Exited(exit)) => exit.code,
            // It runs on, and only the client is gone.
            _ => 0,
        };
        Ok(ExitStatus { code })
    }
}

/// The exit code of a shell for a command that could not be started, if that is what the message says.
fn not_started(message: &str) -> Option<i32> {
    let says = |words: &[&str]| words.iter().any(|w| message.contains(w));
    if says(&["executable file not found", "no such file or directory", "executable file `"]) {
        Some(127)
    } else if says(&["permission denied", "is a directory", "exec format error"]) {
        Some(126)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::not_started;

    #[test]
    fn a_command_that_is_not_there_ends_as_in_a_shell() {
        for (message, want) in [
            ("OCI runtime exec failed: exec: \"x\": executable file not found in $PATH: unknown", Some(127)),
            ("exec: \"/etc\": permission denied", Some(126)),
            ("container is not running", None),
        ] {
            assert_eq!(not_started(message), want, "{message}");
        }
    }
}
