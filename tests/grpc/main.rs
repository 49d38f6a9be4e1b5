//! Pods that are run by gRPC services: what works, and what happens when a service is wrong.
//!
//! | module | what it claims |
//! |---|---|
//! | [`conformance`] | both examples pass the suite that every provider passes |
//! | [`faults`] | what a service does wrong hurts nothing but itself, and is told in a sentence |
//! | [`sharing`] | nodes share a connection, and are kept apart on it |
//! | [`sessions`] | bytes arrive in both directions, and their ends |
//! | [`credentials`] | who may connect, and what happens when that changes |

#[path = "../../e2e/support/checked.rs"]
mod checked;
mod conformance;
mod credentials;
mod faults;
mod sessions;
mod sharing;
mod world;
