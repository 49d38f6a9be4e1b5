//! A helper's output, line by line, as it comes in.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use russh::{Channel, ChannelMsg, client};
use tokio::time::timeout;

use super::device::Lease;
use crate::provider::{ProviderError, Result};

/// How long the helper may take to begin.
const BEGIN: Duration = Duration::from_secs(30);
/// A line of a log is at most as long as this, unless the device's shell has no way to cut it.
const LONGEST: usize = 4 << 20;

/// How the helper began.
#[derive(Debug, PartialEq)]
pub(super) enum Begin {
    Here,
    /// The container is not there, or does not run.
    Gone,
}

/// Lines of a command's standard output. The command's standard input is open as long as this is.
pub(super) struct Lines {
    channel: Channel<client::Msg>,
    part: BytesMut,
    ready: VecDeque<Bytes>,
    over: bool,
}

impl Lines {
    /// Starts a command on a connection.
    pub async fn open(link: &super::dial::Link, command: String) -> Result<Self> {
        let begun = async {
            let channel = link.handle.channel_open_session().await?;
            channel.exec(true, command).await?;
            Ok::<_, russh::Error>(channel)
        };
        let channel = match timeout(BEGIN, begun).await {
            Ok(channel) => channel.map_err(|e| ProviderError::unavailable(format!("the device: {e}")))?,
            Err(_) => return Err(ProviderError::unavailable("the device does not answer")),
        };
        Ok(Self { channel, part: BytesMut::new(), ready: VecDeque::new(), over: false })
    }

    /// Passes over what login shells print, up to the helper's first line.
    pub async fn begin(&mut self) -> Result<Begin> {
        let begun = async {
            while let Some(line) = self.next().await {
                if line.starts_with(b"VNODE-BEGIN ") {
                    return Some(Begin::Here);
                }
                if line.starts_with(b"VNODE-GONE") {
                    return Some(Begin::Gone);
                }
            }
            None
        };
        match timeout(BEGIN, begun).await {
            Ok(Some(begin)) => Ok(begin),
            Ok(None) => Err(ProviderError::unavailable("the device did not do what it was asked for")),
            Err(_) => Err(ProviderError::unavailable("the device does not answer")),
        }
    }

    /// The next line without its end; `None` when there is no more. Cancel-safe.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            if self.over {
                return None;
            }
            match self.channel.wait().await {
                Some(ChannelMsg::Data { data }) => self.take(&data),
                Some(ChannelMsg::Eof | ChannelMsg::Close | ChannelMsg::Failure) | None => {
                    self.over = true;
                    if !self.part.is_empty() {
                        self.ready.push_back(self.part.split().freeze());
                    }
                }
                Some(_) => {}
            }
        }
    }

    fn take(&mut self, data: &[u8]) {
        for piece in data.split_inclusive(|b| *b == b'\n') {
            let (text, whole) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            if self.part.len() < LONGEST {
                self.part.extend_from_slice(text);
            }
            if whole {
                self.ready.push_back(self.part.split().freeze());
            }
        }
    }
}

/// The command line of one of the helper's verbs, for a login shell of any kind.
pub(super) fn verb(lease: &Lease, words: &str) -> String {
    let device = lease.device();
    format!("exec {} {} {words}", device.settings.shell, device.helper_file)
}
