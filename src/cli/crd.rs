//! `vnode crd`: what `crds/` holds.

use anyhow::Result;

use crate::provider::registry;

/// Prints the CustomResourceDefinitions as YAML documents.
pub(super) fn run() -> Result<()> {
    for crd in crate::api::crds_with(&registry::global().members()) {
        print!("---\n{}", serde_saphyr::to_string(&crd)?);
    }
    Ok(())
}
