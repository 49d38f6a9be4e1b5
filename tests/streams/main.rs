//! Exec, attach, port-forward and run through the front door: real TLS connections, raw clients of each
//! protocol, a node and a provider made up for the test, and an API server that answers reviews.

mod clients;
mod forward;
mod rights;
mod spdy;
mod websocket;
mod world;
