//! Starts a development cluster, writes an admin kubeconfig, and runs until Ctrl-C.
//!
//! `cargo run -p vnode-devcluster --example serve -- KUBECONFIG [LISTEN [DATA_DIR]]`

use vnode_devcluster::{DevCluster, Options};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let kubeconfig = arguments.next().unwrap_or_else(|| "kubeconfig".into());
    let mut options = Options::default();
    if let Some(listen) = arguments.next() {
        options.listen = listen.parse()?;
    }
    options.data_dir = arguments.next().map(Into::into);
    let cluster = DevCluster::start(options).await?;
    std::fs::write(&kubeconfig, cluster.admin_kubeconfig()?)?;
    println!("{} serves; kubectl --kubeconfig {kubeconfig} get all", cluster.url());
    tokio::signal::ctrl_c().await?;
    cluster.shutdown().await;
    Ok(())
}
