//! In whose name is read what pods need: the operator's client against the development cluster's Node authorizer.

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{DynamicObject, GetParams, Patch, PatchParams, PostParams};
use kube::core::{GroupVersionKind, Request, Resource as _};
use kube::{Api, Client, ResourceExt as _};
use serde::Deserialize as _;
use serde_json::{Value, json};
use vnode::cluster::client;
use vnode::cluster::identity::{NodeClient, NodeIdentity};
use vnode_devcluster::{DevCluster, Options};

const OPERATOR: &str = "system:serviceaccount:vnode-system:vnode";
const GROUPS: [&str; 2] = ["system:serviceaccounts", "system:serviceaccounts:vnode-system"];

async fn create(admin: &Client, object: Value) {
    let object = DynamicObject::deserialize(object).unwrap();
    let gvk = GroupVersionKind::try_from(object.types.as_ref().unwrap()).unwrap();
    let (resource, _) = kube::discovery::pinned_kind(admin, &gvk).await.unwrap();
    let api: Api<DynamicObject> = match object.namespace() {
        Some(namespace) => Api::namespaced_with(admin.clone(), &namespace, &resource),
        None => Api::all_with(admin.clone(), &resource),
    };
    let params = PatchParams::apply("test").force();
    api.patch(&object.name_any(), &params, &Patch::Apply(&object)).await.unwrap();
}

/// A pod that is bound to a node and refers to a Secret.
fn pod(node: &str, secret: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("on-{node}"), "namespace": "default"},
        "spec": {"nodeName": node, "serviceAccountName": "default",
            "containers": [{"name": "c", "image": "i", "envFrom": [{"secretRef": {"name": secret}}]}]}})
}

async fn read(nodes: &NodeClient, node: &str, secret: &str) -> Result<String, u16> {
    let request = Request::new(Secret::url_path(&(), Some("default"))).get(secret, &GetParams::default()).unwrap();
    let speaker = nodes.speaker(&node.into());
    match nodes.request::<Secret>(speaker.as_deref(), request).await {
        Ok(secret) => Ok(secret.name_any()),
        Err(kube::Error::Api(status)) => Err(status.code),
        Err(error) => panic!("{error}"),
    }
}

async fn token(nodes: &NodeClient, node: &str, pod: &str, uid: &str) -> Result<(), u16> {
    let body = json!({"spec": {"audiences": [], "boundObjectRef": {
        "apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}}});
    let request = Request::new(ServiceAccount::url_path(&(), Some("default")))
        .create_subresource("token", "default", &PostParams::default(), body.to_string().into_bytes())
        .unwrap();
    let speaker = nodes.speaker(&node.into());
    match nodes.request::<TokenRequest>(speaker.as_deref(), request).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err(status.code),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_one_node_cannot_make_us_read_what_only_pods_of_another_refer_to() {
    let options = Options { listen: ([127, 0, 0, 1], 0).into(), controllers: false, ..Options::default() };
    let cluster = DevCluster::start(options).await.unwrap();
    let admin = client::connect_to(&cluster.admin_kubeconfig().unwrap()).await.unwrap();
    let operator = client::connect_to(&cluster.kubeconfig(OPERATOR, &GROUPS).unwrap()).await.unwrap();
    // The rights of config/impersonate alone: the operator's own account may read no Secret at all.
    for manifest in [include_str!("../config/impersonate/role.yaml"), include_str!("../config/impersonate/legacy.yaml")]
    {
        for object in serde_saphyr::from_multiple::<Value>(manifest).unwrap() {
            create(&admin, object).await;
        }
    }
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "default", "namespace": "default"}});
    create(&admin, account).await;
    for (node, secret) in [("a", "of-a"), ("b", "of-b")] {
        create(&admin, json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})).await;
        let object =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret, "namespace": "default"}});
        create(&admin, object).await;
        create(&admin, pod(node, secret)).await;
    }
    let nodes = NodeClient::new(operator.clone(), NodeIdentity::Impersonate);
    for (node, secret, want) in [
        ("a", "of-a", Ok("of-a".to_owned())),
        ("b", "of-b", Ok("of-b".to_owned())),
        ("a", "of-b", Err(403)),
        ("b", "of-a", Err(403)),
        ("none", "of-a", Err(403)),
    ] {
        assert_eq!(read(&nodes, node, secret).await, want, "{node} {secret}");
    }
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(admin, "default");
    let uid = pods.get("on-a").await.unwrap().uid().unwrap();
    assert_eq!(token(&nodes, "a", "on-a", &uid).await, Ok(()));
    assert_eq!(token(&nodes, "b", "on-a", &uid).await, Err(403));

    let own = NodeClient::new(operator, NodeIdentity::Operator);
    assert_eq!(read(&own, "a", "of-a").await, Err(403));
    cluster.shutdown().await;
}
