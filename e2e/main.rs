//! End-to-end tests: the binary, driven with `kubectl`.
//!
//! | module | what it claims |
//! |---|---|
//! | [`alone`] | `vnode node` is a node without custom resources |
//! | [`nodes`] | a VirtualNode becomes a node, follows its edits and goes away again |
//! | [`pods`] | pods run, end, are deleted and can be looked at |
//! | [`plugin`] | `kubectl vnode` tells how the fleet is and finds what is broken |
//! | [`scenarios`] | the table of scenarios: the same on every provider |
//! | [`process`] | pods as processes behave as on a kubelet, and survive restarts |
//! | `docker` | pods as containers behave as on a kubelet, and survive restarts of operator and engine |
//! | `grpc` | pods of a gRPC service run, and outlive the operator and a change of the Secret |
//! | [`web`] | pods that an HTTP service runs behave the same, whatever language it is in |
//! | [`bad_input`] | every mistake gets an answer that names the field and the fix |
//! | [`faults`] | nothing is lost or doubled when something breaks |
//! | [`crash`] | the operator may be killed at any of its writes |
//! | [`clock`] | the operator's clock may jump |
//! | [`certificates`] | nodes serve with the certificates they should have, at the ports they should have |
//! | [`replicas`] | several operators share a fleet and take over from each other |
//! | [`security`] | nobody reads from a node who may not |
//! | [`docs`] | every command of the documentation works |
//! | `traces` | what the operator does can be followed in OpenTelemetry |
//! | [`sets`] | a VirtualNodeSet keeps as many nodes as it says |
//! | [`dev`] | `vnode dev` does what it says |

mod alone;
mod bad_input;
mod certificates;
mod clock;
mod crash;
mod dev;
#[cfg(feature = "docker")]
mod docker;
mod docs;
mod faults;
#[cfg(feature = "grpc")]
mod grpc;
mod nodes;
mod plugin;
mod pods;
mod process;
mod replicas;
mod scenarios;
mod security;
mod sets;
mod streams;
mod support;
#[cfg(feature = "opentelemetry")]
mod traces;
mod web;
