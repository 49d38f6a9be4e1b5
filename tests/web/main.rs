//! The provider `web` against services in other languages, and against services that do everything wrong.

#[path = "../../e2e/support/checked.rs"]
mod checked;
mod description;
mod example;
mod fake;
mod faults;
mod v1;
mod v2;
