//! `vnode crd`: what `crds/` holds.

use anyhow::Result;

/// Prints the CustomResourceDefinitions as YAML documents.
pub(super) fn run() -> Result<()> {
    for crd in crate::api::crds() {
        print!("---\n{}", serde_saphyr::to_string(&crd)?);
    }
    Ok(())
}
