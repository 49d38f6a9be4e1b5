//! What can go wrong between an agent and its provider, sorted by what the agent may conclude from it.

use std::error::Error as StdError;
use std::time::Duration;

/// The result of a provider call.
pub type Result<T, E = ProviderError> = std::result::Result<T, E>;

type Source = Box<dyn StdError + Send + Sync>;

/// Why a provider did not do what it was asked.
///
/// The variant decides what happens to the pod, so choose it with care: only a definite refusal
/// ([`Invalid`](Self::Invalid), [`Rejected`](Self::Rejected), [`Unsupported`](Self::Unsupported)) may
/// fail a pod. Everything that means "I could not find out" is [`Unavailable`](Self::Unavailable) and
/// changes no pod.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The provider answered, and it has no such pod or container.
    #[error("{0} not found")]
    NotFound(String),
    /// The pod can never run here as it is written; `field` is its path in the pod.
    #[error("{field}: {message}")]
    Invalid {
        /// Path of the offending field, as in `spec.containers[0].image`.
        field: String,
        /// What is wrong with it and what would be right.
        message: String,
    },
    /// The provider's service refused: quota, rights, policy. Final for this pod.
    #[error("rejected by the provider ({reason}): {message}")]
    Rejected {
        /// One CamelCase word that becomes the pod's `status.reason`.
        reason: String,
        /// The service's own words.
        message: String,
    },
    /// The provider lacks the ability.
    #[error("{0} is not supported by this provider")]
    Unsupported(&'static str),
    /// The provider could not be reached or did not answer; nothing is known about the outcome.
    #[error("the provider is unavailable: {message}")]
    Unavailable {
        /// What was being done.
        message: String,
        /// How long the service asked us to wait, if it did.
        retry_after: Option<Duration>,
        /// The underlying error.
        #[source]
        source: Option<Source>,
    },
}

impl ProviderError {
    /// An [`Unavailable`](Self::Unavailable) without a source.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable { message: message.into(), retry_after: None, source: None }
    }

    /// True when asking again cannot help, so that the pod may be failed.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Invalid { .. } | Self::Rejected { .. } | Self::Unsupported(_))
    }

    /// True when the provider is certain that it does not have the pod.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }

    /// The CamelCase word for `status.reason` and events.
    pub fn reason(&self) -> &str {
        match self {
            Self::NotFound(_) => "NotFound",
            Self::Invalid { .. } => "InvalidPod",
            Self::Rejected { reason, .. } => reason,
            Self::Unsupported(_) => "UnsupportedField",
            Self::Unavailable { .. } => "ProviderUnavailable",
        }
    }
}
