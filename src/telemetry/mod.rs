//! What the process tells of itself: logs, metrics, health.
//!
//! | module | tells |
//! |---|---|
//! | [`logging`] | what happens, on standard error |
//! | [`metrics`] | how much and how fast, for Prometheus |
//! | [`health`] | whether the process is alive and ready |

pub mod health;
pub mod logging;
pub mod metrics;
mod process;
