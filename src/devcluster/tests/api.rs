//! The cluster as its clients see it, through kube.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, Config};
use serde_json::json;
use vnode_devcluster::{DevCluster, Options};

async fn client(kubeconfig: &str) -> Client {
    let kubeconfig = serde_json::from_str(kubeconfig).unwrap();
    Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap().try_into().unwrap()
}

async fn start(options: Options) -> (DevCluster, Client) {
    let cluster = DevCluster::start(Options { controllers: false, ..options }).await.unwrap();
    let client = client(&cluster.admin_kubeconfig().unwrap()).await;
    (cluster, client)
}

fn config_map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"k": value}})).unwrap()
}

#[tokio::test]
async fn objects_are_created_changed_listed_and_deleted() {
    let (cluster, client) = start(Options::default()).await;
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    let made = api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let merge = Patch::Merge(json!({"data": {"k": "2"}}));
    let changed = api.patch("a", &PatchParams::default(), &merge).await.unwrap();
    assert_eq!(changed.data.as_ref().unwrap()["k"], "2");
    let stale = api.replace("a", &PostParams::default(), &made).await.unwrap_err();
    assert!(matches!(stale, kube::Error::Api(status) if status.code == 409));
    assert_eq!(api.list(&ListParams::default().fields("metadata.name=a")).await.unwrap().items.len(), 1);
    api.delete("a", &DeleteParams::default()).await.unwrap();
    assert!(api.get_opt("a").await.unwrap().is_none());
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_watch_delivers_changes_and_refuses_lost_history() {
    let (cluster, client) = start(Options::default()).await;
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    let list = api.list(&ListParams::default()).await.unwrap();
    let version = list.metadata.resource_version.unwrap();
    let events = api.watch(&WatchParams::default().timeout(20), &version).await.unwrap().boxed();
    api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    api.delete("a", &DeleteParams::default()).await.unwrap();
    let seen: Vec<_> =
        tokio::time::timeout(Duration::from_secs(10), events.take(2).try_collect()).await.unwrap().unwrap();
    assert!(matches!(&seen[..], [WatchEvent::Added(a), WatchEvent::Deleted(b)] if a.metadata.uid == b.metadata.uid));
    cluster.shutdown().await;
}

#[tokio::test]
async fn state_and_credentials_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let options = || Options { data_dir: Some(directory.path().into()), ..Options::default() };
    let (cluster, old_client) = start(options()).await;
    let api: Api<ConfigMap> = Api::namespaced(old_client, "default");
    let made = api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let kubeconfig = cluster.kubeconfig("somebody", &["system:masters"]).unwrap();
    let port = cluster.url().rsplit(':').next().unwrap().parse::<u16>().unwrap();
    cluster.shutdown().await;

    let again = Options { listen: ([127, 0, 0, 1], port).into(), ..options() };
    let (cluster, _) = start(again).await;
    let api: Api<ConfigMap> = Api::namespaced(client(&kubeconfig).await, "default");
    assert_eq!(api.get("a").await.unwrap().metadata, made.metadata);
    let mut events = api.watch(&WatchParams::default().timeout(5), "2").await.unwrap().boxed();
    let first = tokio::time::timeout(Duration::from_secs(10), events.next()).await.unwrap();
    assert!(matches!(first, Some(Ok(WatchEvent::Error(status))) if status.code == 410), "history starts anew");
    cluster.shutdown().await;
}

#[tokio::test]
async fn users_may_do_what_their_roles_allow_and_no_more() {
    let (cluster, admin) = start(Options::default()).await;
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "view"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "User", "name": "jane"}]});
    let bindings: Api<k8s_openapi::api::rbac::v1::RoleBinding> = Api::namespaced(admin, "default");
    bindings.create(&PostParams::default(), &serde_json::from_value(binding).unwrap()).await.unwrap();
    let jane = client(&cluster.kubeconfig("jane", &[]).unwrap()).await;
    let here: Api<Pod> = Api::namespaced(jane.clone(), "default");
    here.list(&ListParams::default()).await.unwrap();
    for refused in [
        Api::<Pod>::namespaced(jane.clone(), "kube-system").list(&ListParams::default()).await.map(drop),
        here.delete("x", &DeleteParams::default()).await.map(drop),
    ] {
        assert!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 403));
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_role_for_one_name_grants_lists_that_select_that_name_alone() {
    let (cluster, admin) = start(Options::default()).await;
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "one"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["a"], "verbs": ["list", "watch"]}]});
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "one"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "one"},
        "subjects": [{"kind": "User", "name": "jane"}]});
    let roles: Api<k8s_openapi::api::rbac::v1::Role> = Api::namespaced(admin.clone(), "default");
    roles.create(&PostParams::default(), &serde_json::from_value(role).unwrap()).await.unwrap();
    let bindings: Api<k8s_openapi::api::rbac::v1::RoleBinding> = Api::namespaced(admin, "default");
    bindings.create(&PostParams::default(), &serde_json::from_value(binding).unwrap()).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client(&cluster.kubeconfig("jane", &[]).unwrap()).await, "default");
    for (fields, granted) in [
        ("metadata.name=a", true),
        ("metadata.namespace=default,metadata.name==a", true),
        ("metadata.name=b", false),
        ("metadata.name!=a", false),
        ("metadata.namespace!=x\\,metadata.name=a", false),
        ("metadata.namespace=default", false),
        ("", false),
    ] {
        let listed = maps.list(&ListParams::default().fields(fields)).await;
        assert_eq!(listed.is_ok(), granted, "list of {fields:?}: {listed:?}");
        let watched = maps.watch(&WatchParams::default().fields(fields).timeout(1), "0").await;
        assert_eq!(watched.is_ok(), granted, "watch of {fields:?}");
    }
    cluster.shutdown().await;
}
