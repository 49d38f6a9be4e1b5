//! `vnode` with a provider of its own: `cargo run -p custom-provider -- dev`, then apply `node.yaml`.

mod folder;

use std::process::ExitCode;
use std::sync::Arc;

use vnode::provider::External;

fn main() -> ExitCode {
    let folder = External::new(|config, context| Ok(Arc::new(folder::Folder::new(config, context))));
    vnode::Program::new().provider("folder", folder.with_schema::<folder::Config>().pinned()).main()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vnode::provider::conformance::{self, Options};
    use vnode::provider::{Provider, Result};

    use super::*;

    #[tokio::test]
    async fn pods_as_files_conform() {
        let folder = tempfile::tempdir().unwrap();
        let make = |context| {
            let config = serde_json::from_value(serde_json::json!({"path": folder.path()})).unwrap();
            let provider: Arc<dyn Provider> = Arc::new(folder::Folder::new(config, context));
            std::future::ready(Result::Ok(provider))
        };
        // Nothing is run: a pod is a record.
        let options = Options { simulated: true, patience: Duration::from_secs(10), ..Options::default() };
        conformance::run(make, options).await;
    }
}
