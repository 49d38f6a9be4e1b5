//! What the two ends of a session can say to each other.

use bytes::Bytes;

use crate::Headers;

/// One frame, or a piece of a data frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream {
        /// The new stream: odd from the client, even from the server, always higher than the last.
        id: u32,
        /// The stream it belongs to, or 0.
        associated: u32,
        /// 0 is the most urgent, 7 the least. Not acted upon.
        priority: u8,
        /// The sender will send nothing on it.
        fin: bool,
        /// The receiver may send nothing on it.
        unidirectional: bool,
        /// What the stream is for.
        headers: Headers,
    },
    /// Accepts a stream.
    SynReply {
        /// Which one.
        id: u32,
        /// The sender will send nothing on it.
        fin: bool,
        /// The answer.
        headers: Headers,
    },
    /// Ends a stream at once, in both directions.
    RstStream {
        /// Which one.
        id: u32,
        /// Why.
        status: RstStatus,
    },
    /// Tells how the sender would like to be treated.
    Settings(Vec<(u32, u32)>),
    /// Asks for an echo, or is one.
    Ping(u32),
    /// No more streams are accepted.
    GoAway {
        /// The last stream that was.
        last: u32,
        /// Why.
        status: GoAwayStatus,
    },
    /// More headers of a stream.
    Headers {
        /// Which one.
        id: u32,
        /// The sender will send nothing more on it.
        fin: bool,
        /// The headers.
        headers: Headers,
    },
    /// Lets the receiver send more.
    WindowUpdate {
        /// On which stream; 0 for the session.
        id: u32,
        /// How many bytes more.
        delta: u32,
    },
    /// Bytes of a stream. A decoder gives the bytes of one data frame in as many pieces as they come.
    Data {
        /// Which stream.
        id: u32,
        /// The sender will send nothing more on it.
        fin: bool,
        /// The bytes.
        bytes: Bytes,
    },
}

/// `SETTINGS_INITIAL_WINDOW_SIZE`
pub const INITIAL_WINDOW_SIZE: u32 = 7;
/// `SETTINGS_MAX_CONCURRENT_STREAMS`
pub const MAX_CONCURRENT_STREAMS: u32 = 4;
/// A window before anything is said about it.
pub const DEFAULT_WINDOW: u32 = 64 * 1024;

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident: $($(#[$variant_doc:meta])* $variant:ident = $number:literal,)+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
            /// A number that the protocol does not name.
            Other(u32),
        }

        impl From<u32> for $name {
            fn from(number: u32) -> Self {
                match number {
                    $($number => Self::$variant,)+
                    other => Self::Other(other),
                }
            }
        }

        impl From<$name> for u32 {
            fn from(status: $name) -> Self {
                match status {
                    $($name::$variant => $number,)+
                    $name::Other(other) => other,
                }
            }
        }
    };
}

numbered! {
    /// Why a stream was reset.
    RstStatus:
    /// The peer broke the protocol.
    ProtocolError = 1,
    /// There is no such stream.
    InvalidStream = 2,
    /// The stream was not accepted.
    RefusedStream = 3,
    /// The version is not spoken.
    UnsupportedVersion = 4,
    /// The stream is not needed any more.
    Cancel = 5,
    /// Something else went wrong.
    InternalError = 6,
    /// The peer sent more than it may.
    FlowControlError = 7,
    /// The peer answered twice.
    StreamInUse = 8,
    /// The peer sent after it had closed.
    StreamAlreadyClosed = 9,
    /// The credentials do not fit.
    InvalidCredentials = 10,
    /// A frame was too large.
    FrameTooLarge = 11,
}

numbered! {
    /// Why a session ends.
    GoAwayStatus:
    /// All is well.
    Ok = 0,
    /// The peer broke the protocol.
    ProtocolError = 1,
    /// Something else went wrong.
    InternalError = 2,
}
