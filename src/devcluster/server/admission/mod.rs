//! Admission: what a user who may write a kind may still not write.
//!
//! [`node`] keeps nodes to their own objects, [`roles`] keeps everybody from granting more than they have, and
//! [`pods`] gives pods what they need, [`certificates`] keeps signing requests to those who may approve and sign them. Writes of the server itself have a
//! user without a name and are let through.

pub(super) mod certificates;
pub(super) mod node;
pub(super) mod pods;
mod roles;

use serde_json::Value;

use super::{Api, Write};
use crate::status::Result;

/// Before an object is created; it has its defaults already.
pub(super) fn create(api: &Api, write: &Write<'_>, value: &Value) -> Result<()> {
    if write.user.name.is_empty() {
        return Ok(());
    }
    node::create(write, value)?;
    certificates::create(write, value)?;
    roles::check(api, write, value, None)
}

/// Before an object is replaced.
pub(super) fn update(api: &Api, write: &Write<'_>, new: &mut Value, old: &Value) -> Result<()> {
    certificates::keep(write, new, old);
    if write.user.name.is_empty() {
        return Ok(());
    }
    node::update(write, new, old)?;
    certificates::update(api, write, new, old)?;
    roles::check(api, write, new, Some(old))
}
