//! What a client sees of the development cluster, over its HTTPS port. One binary, so that it is linked once.

mod access;
mod answers;
mod api;
mod bad_input;
mod certificates;
mod common;
mod documentation;
mod durability;
mod faults;
mod kubernetes;
mod refusals;
mod streams;
mod support;
