//! End-to-end tests: the binary, driven with `kubectl`.
//!
//! | module | what it claims |
//! |---|---|
//! | [`nodes`] | a VirtualNode becomes a node, follows its edits and goes away again |
//! | [`pods`] | pods run, end, are deleted and can be looked at |
//! | [`process`] | pods as processes behave as on a kubelet, and survive restarts |
//! | [`bad_input`] | every mistake gets an answer that names the field and the fix |
//! | [`faults`] | nothing is lost or doubled when something breaks |
//! | [`security`] | nobody reads from a node who may not |
//! | [`dev`] | `vnode dev` does what it says |

mod bad_input;
mod dev;
mod faults;
mod nodes;
mod pods;
mod process;
mod security;
mod streams;
mod support;
