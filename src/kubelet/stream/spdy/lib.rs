//! SPDY/3.1 over any stream of bytes, as Kubernetes uses it for exec, attach and port-forward.
//!
//! Two ends share one connection and open streams on it, each with headers and a direction for bytes both
//! ways that can be closed on its own. [`server`] and [`client`] make the two ends; each gives a
//! [`Session`], through which streams are opened and accepted, and a [`Connection`], the future that
//! does the work and must be polled for anything to move. Nothing is spawned: dropping the connection
//! ends everything.
//!
//! ```
//! # async fn example(socket: tokio::io::DuplexStream) -> Result<(), vnode_spdy::Error> {
//! use tokio::io::AsyncReadExt;
//! let (session, connection) = vnode_spdy::server(socket, vnode_spdy::Options::default());
//! let work = async {
//!     while let Some(incoming) = session.accept().await {
//!         println!("a {:?} stream", incoming.headers().get("streamtype"));
//!         let mut stream = incoming.accept();
//!         let mut all = Vec::new();
//!         stream.read_to_end(&mut all).await?;
//!     }
//!     Ok(())
//! };
//! tokio::select! {
//!     ended = connection => ended,
//!     done = work => done,
//! }
//! # }
//! ```
//!
//! # Flow control
//!
//! SPDY/3.1 gives each stream and the session a window, which the reader widens as it reads. The
//! implementation that kubectl, kube-apiserver and kubelet use does not: it sends no windows and ignores
//! those it is sent. So an end is held to its windows only once the other has shown that it keeps some;
//! and what arrives for a stream that nobody reads stops the whole connection when the stream's
//! buffer is full, because nothing else would stop such a peer; [`Session::held_up`] tells of it. Between two ends of this crate a stream
//! that nobody reads stops only itself.
//!
//! # Limits
//!
//! Every buffer has a bound ([`Options`]): bytes for each stream and for the session, streams at a time,
//! and the size of header blocks before and after decompression.
//!
//! | module | holds |
//! |---|---|
//! | [`frame`] | what can be said |
//! | [`codec`] | frames as bytes; stands alone, for tests and fuzzing |
//! | `session` | the handle through which streams are opened and accepted |
//! | `state` | streams, windows, and who waits for what |
//! | `connection` | the future that reads and writes |
//! | `input` | what waits to be read |
//! | `stream` | readers and writers |
//! | [`tunnel`] | the bytes of a session as messages of a WebSocket |
//!
//! The protocol: <https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/>.

pub mod codec;
mod connection;
mod dictionary;
pub mod frame;
mod headers;
mod input;
mod session;
mod state;
mod stream;
pub mod tunnel;
mod zlib;

use std::io;

pub use connection::Connection;
pub use frame::{GoAwayStatus, RstStatus};
pub use headers::Headers;
pub use session::{Incoming, Session};
pub use stream::{ReadHalf, Stream, WriteHalf};

use tokio::io::{AsyncRead, AsyncWrite};

/// Limits of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Streams at a time, opened by either end.
    pub max_streams: usize,
    /// Bytes that wait to be read on one stream.
    pub stream_buffer: u32,
    /// Bytes that wait to be read on all streams.
    pub session_buffer: u32,
    /// Limits of single frames.
    pub codec: codec::Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_streams: 256, stream_buffer: 256 * 1024, session_buffer: 4 << 20, codec: codec::Limits::default() }
    }
}

/// Why a session or a stream does not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The other end broke the protocol.
    #[error("the peer broke the protocol")]
    Codec(#[from] codec::CodecError),
    /// The other end broke the protocol in a way that only shows in the order of frames.
    #[error("the peer broke the protocol: {0}")]
    Protocol(&'static str),
    /// The other end reset the stream.
    #[error("the stream was reset ({0:?})")]
    Reset(RstStatus),
    /// The session is over, or no new streams are wanted.
    #[error("the session is closed")]
    Closed,
    /// There are as many streams as there may be.
    #[error("too many streams")]
    TooManyStreams,
}

/// The end that accepted the connection.
pub fn server<T: AsyncRead + AsyncWrite + Unpin>(io: T, options: Options) -> (Session, Connection<T>) {
    start(io, options, state::Role::Server)
}

/// The end that made the connection.
pub fn client<T: AsyncRead + AsyncWrite + Unpin>(io: T, options: Options) -> (Session, Connection<T>) {
    start(io, options, state::Role::Client)
}

fn start<T: AsyncRead + AsyncWrite + Unpin>(io: T, options: Options, role: state::Role) -> (Session, Connection<T>) {
    let decoder = codec::Decoder::new(options.codec.clone());
    let session = Session::new(options, role);
    let connection = Connection::new(io, session.shared.clone(), decoder);
    (session, connection)
}
