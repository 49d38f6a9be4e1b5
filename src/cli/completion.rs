//! `vnode completion`

use clap::CommandFactory as _;

/// Prints the script.
pub(super) fn run(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut super::Cli::command(), "vnode", &mut std::io::stdout());
}
