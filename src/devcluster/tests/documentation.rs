//! What the documentation says of the cluster is what the cluster does.

const GUIDE: &str = include_str!("../../../docs/development-cluster.md");

#[test]
fn the_documented_kinds_are_those_of_the_table() {
    let (_, rest) = GUIDE.split_once("<!-- kinds -->\n").expect("the guide marks where its table begins");
    let (documented, _) = rest.split_once("<!-- end of kinds -->").expect("and where it ends");
    let table = vnode_devcluster::supported_kinds();
    assert!(
        documented.trim() == table.trim(),
        "docs/development-cluster.md is out of date; between its markers belongs what \
         `cargo run -p vnode-devcluster --example kinds` prints:\n\n{table}"
    );
}
