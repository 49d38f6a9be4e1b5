//! The door for programs that are this one with providers of their own.

use std::process::ExitCode;

use crate::provider::External;
use crate::provider::registry::{self, NameError};

/// This program with more providers: all subcommands, `type: external`, and a member of `spec.provider` in `crd` and
/// `dev` for each provider that has a schema. See [`External`].
#[derive(Debug, Default)]
pub struct Program {
    refused: Option<NameError>,
}

impl Program {
    /// A program with the providers of this crate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a provider, or replaces the one of that name. The name is a word of lower case letters and digits.
    #[must_use]
    pub fn provider(mut self, name: &str, provider: External) -> Self {
        if let Err(refused) = registry::global().register_external(name, provider) {
            self.refused.get_or_insert(refused);
        }
        self
    }

    /// Runs what the command line asks for and returns the exit code. A name that no provider can have is told here.
    #[must_use]
    pub fn main(self) -> ExitCode {
        match self.refused {
            Some(refused) => {
                eprintln!("error: {refused}");
                ExitCode::FAILURE
            }
            None => super::main(),
        }
    }
}
