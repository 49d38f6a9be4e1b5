//! ConfigMaps and Secrets, read one by one and by the name that a pod gives.
//!
//! Each is kept for a few seconds, so that a thousand pods of one Deployment read it once, and that it is
//! missing is kept for an even shorter time, so that a thousand pods that wait for it do not ask a thousand
//! times. What is kept is bounded in bytes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::GetParams;
use kube::core::{PartialObjectMeta, Request, Resource};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::cluster::identity::NodeClient;

const KEPT_FOR: Duration = Duration::from_secs(5);
/// How long "there is none" holds: what appears is found within this and the time between two tries.
const MISSED_FOR: Duration = Duration::from_secs(1);
/// Bytes of ConfigMaps and Secrets that are kept.
const KEPT_BYTES: u64 = 16 << 20;
const DEADLINE: Duration = Duration::from_secs(10);

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    ConfigMap,
    Secret,
}

impl Kind {
    /// As in `kind`.
    pub fn word(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }

    /// As kubelet names it in messages.
    pub fn lower(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        }
    }
}

/// Names one object, and who asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ObjectKey {
    /// The node in whose name it is read; `None` is the operator. What one node may read is not given to another.
    pub speaker: Option<Arc<str>>,
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

/// An object's data. Without Debug: it may be a Secret's.
pub(crate) struct Object {
    /// `metadata.resourceVersion`
    pub version: String,
    /// It can never change, so it need not be looked at again.
    pub immutable: bool,
    pub data: BTreeMap<String, Bytes>,
}

/// Reads ConfigMaps and Secrets.
pub(crate) struct ObjectCache {
    client: NodeClient,
    kept: moka::future::Cache<ObjectKey, (Instant, Arc<Object>)>,
    missed: moka::future::Cache<ObjectKey, Instant>,
}

/// Why there is no data.
#[derive(Clone, Debug)]
enum Lack {
    Missing,
    Failed(String),
}

impl ObjectCache {
    pub fn new(client: NodeClient) -> Self {
        let weigh = |key: &ObjectKey, (_, object): &(Instant, Arc<Object>)| {
            let bytes: usize = object.data.iter().map(|(k, v)| k.len() + v.len() + 64).sum();
            u32::try_from(bytes + key.namespace.len() + key.name.len() + 256).unwrap_or(u32::MAX)
        };
        let kept =
            moka::future::Cache::builder().time_to_live(KEPT_FOR).max_capacity(KEPT_BYTES).weigher(weigh).build();
        let missed = moka::future::Cache::builder().time_to_live(MISSED_FOR).max_capacity(4096).build();
        Self { client, kept, missed }
    }

    /// The object; `None` when there is no such object.
    pub async fn get(&self, key: &ObjectKey) -> Result<Option<Arc<Object>>, String> {
        if self.missed.get(key).await.is_some_and(|at| at.elapsed() < MISSED_FOR) {
            return Ok(None);
        }
        if self.kept.get(key).await.is_some_and(|(at, _)| at.elapsed() >= KEPT_FOR) {
            self.kept.invalidate(key).await;
        }
        let read = async {
            match tokio::time::timeout(DEADLINE, self.read(key)).await {
                Ok(Ok(object)) => object.map(|o| (Instant::now(), Arc::new(o))).ok_or(Lack::Missing),
                Ok(Err(kube::Error::Api(status))) => Err(Lack::Failed(status.message)),
                Ok(Err(other)) => Err(Lack::Failed(other.to_string())),
                Err(_) => Err(Lack::Failed("the API server did not answer in time".into())),
            }
        };
        match self.kept.try_get_with_by_ref(key, read).await {
            Ok((_, object)) => Ok(Some(object)),
            Err(lack) => match &*lack {
                Lack::Missing => {
                    self.missed.insert(key.clone(), Instant::now()).await;
                    Ok(None)
                }
                Lack::Failed(error) => Err(error.clone()),
            },
        }
    }

    /// The version that the object has now, without its data; `None` when there is no such object.
    pub async fn version(&self, key: &ObjectKey) -> Result<Option<String>, String> {
        let meta = async {
            match key.kind {
                Kind::ConfigMap => self.fetch_metadata::<ConfigMap>(key).await,
                Kind::Secret => self.fetch_metadata::<Secret>(key).await,
            }
        };
        match tokio::time::timeout(DEADLINE, meta).await {
            Ok(Ok(meta)) => Ok(meta.map(|m| m.resource_version.unwrap_or_default())),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the API server did not answer in time".into()),
        }
    }

    /// Reads the object anew the next time.
    pub async fn drop_kept(&self, key: &ObjectKey) {
        self.kept.invalidate(key).await;
        self.missed.invalidate(key).await;
    }

    async fn read(&self, key: &ObjectKey) -> kube::Result<Option<Object>> {
        Ok(match key.kind {
            Kind::ConfigMap => self.fetch::<ConfigMap>(key).await?.map(|object| {
                let text = object.data.unwrap_or_default().into_iter().map(|(k, v)| (k, Bytes::from(v)));
                let binary = object.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, Bytes::from(v.0)));
                Object {
                    version: object.metadata.resource_version.unwrap_or_default(),
                    immutable: object.immutable.unwrap_or_default(),
                    data: text.chain(binary).collect(),
                }
            }),
            Kind::Secret => self.fetch::<Secret>(key).await?.map(|object| Object {
                version: object.metadata.resource_version.unwrap_or_default(),
                immutable: object.immutable.unwrap_or_default(),
                data: object.data.unwrap_or_default().into_iter().map(|(k, v)| (k, Bytes::from(v.0))).collect(),
            }),
        })
    }

    async fn fetch<K: Resource<DynamicType = ()> + DeserializeOwned>(
        &self,
        key: &ObjectKey,
    ) -> kube::Result<Option<K>> {
        let request = Request::new(K::url_path(&(), Some(&key.namespace)));
        let request = request.get(&key.name, &GetParams::default()).map_err(kube::Error::BuildRequest)?;
        found(self.client.request(key.speaker.as_deref(), request).await)
    }

    async fn fetch_metadata<K: Resource<DynamicType = ()>>(&self, key: &ObjectKey) -> kube::Result<Option<ObjectMeta>> {
        let request = Request::new(K::url_path(&(), Some(&key.namespace)));
        let request = request.get_metadata(&key.name, &GetParams::default()).map_err(kube::Error::BuildRequest)?;
        let meta: kube::Result<PartialObjectMeta> = self.client.request(key.speaker.as_deref(), request).await;
        Ok(found(meta)?.map(|m| m.metadata))
    }
}

fn found<T>(answer: kube::Result<T>) -> kube::Result<Option<T>> {
    match answer {
        Ok(object) => Ok(Some(object)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}
