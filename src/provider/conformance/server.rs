//! Containers that serve HTTP, for what asks them.

use std::net::{Ipv4Addr, TcpListener};

use rand::Rng as _;

use super::super::{PodObservation, PodRef, Result};
use super::pods::ContainerPlan;
use super::seen::{code, of};
use super::suite::{Failure, Suite, must};

/// How a container ends whose image has no program that serves.
const NO_PROGRAM: i32 = 66;

/// A port for one pod. The containers of some providers share the ports of a machine, which may be this one.
pub(super) fn port() -> u16 {
    // Below those that connections of this machine get.
    let mut any = std::iter::repeat_with(|| rand::rng().random_range(10_240..30_000));
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok();
    any.by_ref().take(100).find(free).unwrap_or(10_240)
}

/// A container that serves a page with the word `served` on a port, named `web`.
pub(super) fn container(name: &'static str, port: u16) -> ContainerPlan {
    let script = format!(
        "cd \"${{VNODE_CONTAINER_ROOT:-/tmp}}\" && mkdir -p served-{port} && cd served-{port} && echo served > index.html; \
         if busybox --list 2>/dev/null | grep -qx httpd; then exec busybox httpd -f -p {port} -h .; fi; \
         if command -v python3 >/dev/null; then exec python3 -m http.server {port}; fi; \
         exit {NO_PROGRAM}"
    );
    ContainerPlan::new(name)
        .script(&script)
        .with(serde_json::json!({"ports": [{"name": "web", "containerPort": port}]}))
}

/// A script that prints what a port of the same pod serves, once it does.
pub(super) fn fetch(port: u16) -> String {
    let python = format!(
        "import urllib.request as r; print(r.urlopen(\"http://127.0.0.1:{port}/\", timeout=5).read().decode())"
    );
    format!(
        "n=0; while [ $n -lt 20 ]; do n=$((n+1)); \
         if busybox --list 2>/dev/null | grep -qx wget; then busybox wget -q -O - http://127.0.0.1:{port}/ && exit 0; \
         else python3 -c '{python}' 2>/dev/null && exit 0; fi; \
         sleep 1; done; exit 1"
    )
}

fn lacks_program(o: &PodObservation, name: &str) -> bool {
    of(o, name, |c| code(c) == Some(NO_PROGRAM))
}

/// Fails with [`Failure::NotClaimed`] when the image has no program that serves.
pub(super) async fn claimed(s: &Suite<'_>, pod: &PodRef, name: &str) -> Result<(), Failure> {
    let seen = must("get the pod", s.provider().get_pod(pod).await)?;
    if lacks_program(&seen, name) {
        return Err(Failure::NotClaimed("its image has neither busybox's httpd nor python3".into()));
    }
    Ok(())
}

/// Waits for something that takes a server, in a pod under `restartPolicy: Never`.
pub(super) async fn wait(
    s: &Suite<'_>,
    pod: &PodRef,
    name: &str,
    what: &str,
    holds: impl Fn(&PodObservation) -> bool,
) -> Result<PodObservation, Failure> {
    let seen = s.wait(pod, what, |o| holds(o) || lacks_program(o, name)).await?;
    claimed(s, pod, name).await?;
    Ok(seen)
}
