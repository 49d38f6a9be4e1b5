//! What the process tells of itself: logs, metrics, health.
//!
//! | module | tells |
//! |---|---|
//! | [`logging`] | what happens, on standard error |
//! | `traces` | how long what took, for OpenTelemetry |
//! | [`metrics`] | how much and how fast, for Prometheus |
//! | [`health`] | whether the process is alive and ready |
//! | [`view`] | what the fleet lets be seen of itself, for the two below |
//! | `page` | the fleet page: nodes as a grid, in a browser |
//! | `debug` | the state of the process, and its log levels, for those who may |

mod debug;
pub mod health;
pub mod logging;
pub mod metrics;
mod page;
mod process;
#[cfg(feature = "opentelemetry")]
mod traces;
pub mod view;
