//! What can be done on the engine's own machine and nowhere else: entering a pod's network, and ending a
//! process of a container.
//!
//! The engine's numbers of processes are those of its machine. We may be in a container ourselves and see
//! others, so a number counts only when the process that has it here is in the container it is said to be in.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const CONNECT: Duration = Duration::from_secs(5);

/// True when the process of this number here is one of the container's.
fn is_in(pid: i32, container: &str) -> bool {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    !container.is_empty() && groups.contains(container)
}

/// Kills a process of a container, if it is certain that it is one.
pub(super) fn kill(pid: i32, container: &str) {
    if let (true, Some(pid)) = (is_in(pid, container), Pid::from_raw(pid)) {
        // It may have ended by itself.
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// Connects to a port of the network that a process is in: to its addresses first, then to `localhost`.
/// `None` when that network cannot be entered from here.
pub(super) async fn connect(
    pid: i32,
    container: &str,
    ips: &[IpAddr],
    port: u16,
) -> Option<io::Result<tokio::net::TcpStream>> {
    if !is_in(pid, container) {
        return None;
    }
    let network = std::fs::File::open(format!("/proc/{pid}/ns/net")).ok()?;
    let local = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let ips: Vec<_> = ips.iter().copied().chain(local).collect();
    let (tell, told) = tokio::sync::oneshot::channel();
    // A thread of its own, which ends in that network: it must not serve anything else.
    let entering = std::thread::Builder::new().name("pod-network".into()).spawn(move || {
        let entered = move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network));
        let connected = entered.is_ok().then(|| {
            let mut last = io::Error::from(io::ErrorKind::ConnectionRefused);
            for ip in ips {
                match TcpStream::connect_timeout(&SocketAddr::new(ip, port), CONNECT) {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = error,
                }
            }
            Err(last)
        });
        // Nobody waits any more when this fails.
        let _ = tell.send(connected);
    });
    entering.ok()?;
    let connected = told.await.ok()??;
    Some(connected.and_then(|stream| {
        stream.set_nonblocking(true)?;
        tokio::net::TcpStream::from_std(stream)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_in_no_such_container_is_left_alone() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(!is_in(own, "0123456789abcdef"));
        assert!(!is_in(own, ""), "an unknown container is none");
        kill(own, "0123456789abcdef");
    }
}
