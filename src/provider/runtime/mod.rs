//! The container runtime loop: everything that a pod promises, for any engine that can start and stop
//! containers.
//!
//! | module | what it is |
//! |---|---|
//! | [`engine`] | the trait [`Engine`], and what it is told |
//! | `record` | what is kept of a pod on disk, so that a restart changes nothing |

pub mod engine;
pub(crate) mod files;
pub(crate) mod machine;
pub(crate) mod record;

pub use engine::{
    ContainerRef, ContainerSpec, ContainerState, Engine, EngineEvent, EngineUsage, Exit, Image, ListedContainer,
    ListedSandbox, Listing, Mount, PullRequest, Sandbox, SandboxSpec, Signal,
};
