//! A pod's volumes: their files as content, made from ConfigMaps, Secrets, the pod itself and tokens.
//!
//! The rules and the messages are kubelet's (`pkg/volume/{configmap,secret,downwardapi,projected}`). A provider
//! that has no use for content is spared it: then only what a volume names is looked for, and no token is made.
//!
//! | module | what it is |
//! |---|---|
//! | [`tokens`] | service account tokens, renewed before they expire |
//! | [`trust`] | ClusterTrustBundles |

pub(super) mod tokens;
mod trust;

use std::collections::BTreeMap;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource, Volume};

use super::environment::fields;
use super::objects::Kind;
use super::quantity;
use super::resolve::{Gathered, Resolver};
use crate::provider::{FileSet, PodFeature, ResolvedVolume, VolumeFile, VolumeFiles};

/// Kubernetes' default for `defaultMode`.
const DEFAULT_MODE: u32 = 0o644;
/// Of a token's file when somebody else than root is to read it. kubelet: `projected.go`.
const TOKEN_MODE: u32 = 0o600;

/// The volumes that are ready, and why others are not: name and reason.
pub(super) type Volumes = (BTreeMap<String, ResolvedVolume>, Vec<(String, String)>);

/// True for a path that stays below where it begins.
pub(super) fn is_inside(path: &str) -> bool {
    !path.starts_with('/') && path.split('/').all(|part| part != "..")
}

/// The kind of a volume, as its member in `spec.volumes[]` is called.
pub(super) fn kind_of(volume: &Volume) -> &'static str {
    let v = volume;
    let all: [(&'static str, bool); 30] = [
        ("configMap", v.config_map.is_some()),
        ("secret", v.secret.is_some()),
        ("downwardAPI", v.downward_api.is_some()),
        ("projected", v.projected.is_some()),
        ("emptyDir", v.empty_dir.is_some()),
        ("hostPath", v.host_path.is_some()),
        ("persistentVolumeClaim", v.persistent_volume_claim.is_some()),
        ("csi", v.csi.is_some()),
        ("ephemeral", v.ephemeral.is_some()),
        ("image", v.image.is_some()),
        ("nfs", v.nfs.is_some()),
        ("awsElasticBlockStore", v.aws_elastic_block_store.is_some()),
        ("azureDisk", v.azure_disk.is_some()),
        ("azureFile", v.azure_file.is_some()),
        ("cephfs", v.cephfs.is_some()),
        ("cinder", v.cinder.is_some()),
        ("fc", v.fc.is_some()),
        ("flexVolume", v.flex_volume.is_some()),
        ("flocker", v.flocker.is_some()),
        ("gcePersistentDisk", v.gce_persistent_disk.is_some()),
        ("gitRepo", v.git_repo.is_some()),
        ("glusterfs", v.glusterfs.is_some()),
        ("iscsi", v.iscsi.is_some()),
        ("photonPersistentDisk", v.photon_persistent_disk.is_some()),
        ("portworxVolume", v.portworx_volume.is_some()),
        ("quobyte", v.quobyte.is_some()),
        ("rbd", v.rbd.is_some()),
        ("scaleIO", v.scale_io.is_some()),
        ("storageos", v.storageos.is_some()),
        ("vsphereVolume", v.vsphere_volume.is_some()),
    ];
    // Nothing set is an emptyDir, as the API server defaults it.
    all.iter().find(|(_, set)| *set).map_or("emptyDir", |(kind, _)| kind)
}

/// The files of one volume while they are gathered.
#[derive(Default)]
struct Files(BTreeMap<String, VolumeFile>);

impl Files {
    fn put(&mut self, path: &str, content: Bytes, mode: u32, owner: Option<i64>, secret: bool) -> Result<(), String> {
        if path.is_empty() || !is_inside(path) || path.contains('\0') {
            return Err(format!("{path:?} is not a relative path without '..'"));
        }
        self.0.insert(path.to_owned(), VolumeFile { path: path.to_owned(), content, mode, owner, secret });
        Ok(())
    }
}

/// Which keys of an object become which files.
struct Selection<'a> {
    kind: Kind,
    name: &'a str,
    items: Option<&'a [KeyToPath]>,
    mode: u32,
    optional: bool,
}

fn bits(mode: Option<i32>, default: u32) -> u32 {
    mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(default) & 0o777
}

impl Resolver<'_> {
    fn wants_content(&self) -> bool {
        self.capabilities.volume_files != VolumeFiles::Ignored
    }

    /// Resolves every volume.
    pub(super) async fn volumes(&self, gathered: &mut Gathered) -> Volumes {
        let (mut resolved, mut failed) = Volumes::default();
        for volume in self.pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            match self.volume(volume, gathered).await {
                Ok(done) => drop(resolved.insert(volume.name.clone(), done)),
                Err(message) => failed.push((volume.name.clone(), message)),
            }
        }
        (resolved, failed)
    }

    async fn volume(&self, volume: &Volume, gathered: &mut Gathered) -> Result<ResolvedVolume, String> {
        let mut files = Files::default();
        if let Some(v) = &volume.config_map {
            let selection = Selection {
                kind: Kind::ConfigMap,
                name: &v.name,
                items: v.items.as_deref(),
                mode: bits(v.default_mode, DEFAULT_MODE),
                optional: v.optional == Some(true),
            };
            self.object_files(&selection, &mut files, gathered).await?;
        } else if let Some(v) = &volume.secret {
            let selection = Selection {
                kind: Kind::Secret,
                name: v.secret_name.as_deref().unwrap_or_default(),
                items: v.items.as_deref(),
                mode: bits(v.default_mode, DEFAULT_MODE),
                optional: v.optional == Some(true),
            };
            self.object_files(&selection, &mut files, gathered).await?;
        } else if let Some(v) = &volume.downward_api {
            let mode = bits(v.default_mode, DEFAULT_MODE);
            self.downward_files(v.items.as_deref().unwrap_or_default(), mode, &mut files)?;
        } else if let Some(v) = &volume.projected {
            self.projected_files(v, &mut files, gathered).await?;
        } else if let Some(v) = &volume.host_path {
            return Ok(ResolvedVolume::HostPath { path: v.path.clone(), type_: v.type_.clone().unwrap_or_default() });
        } else {
            let kind = kind_of(volume);
            if kind != "emptyDir" {
                return Ok(ResolvedVolume::Other { kind });
            }
            let source = volume.empty_dir.clone().unwrap_or_default();
            let size = source.size_limit.as_ref().and_then(|q| quantity::whole(&q.0));
            return Ok(ResolvedVolume::EmptyDir {
                medium: source.medium.unwrap_or_default(),
                size_limit: size.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0),
            });
        }
        let files = if self.wants_content() { files.0.into_values().collect() } else { Vec::new() };
        Ok(ResolvedVolume::Files(FileSet { files }))
    }

    async fn object_files(&self, s: &Selection<'_>, files: &mut Files, gathered: &mut Gathered) -> Result<(), String> {
        let Some(object) = self.object(s.kind, s.name, gathered).await? else {
            return match s.optional {
                true => Ok(()),
                false => Err(format!("{} {:?} not found", s.kind.lower(), s.name)),
            };
        };
        let secret = s.kind == Kind::Secret;
        let Some(items) = s.items.filter(|i| !i.is_empty()) else {
            for (key, content) in &object.data {
                files.put(key, content.clone(), s.mode, None, secret)?;
            }
            return Ok(());
        };
        for item in items {
            match object.data.get(&item.key) {
                Some(content) => files.put(&item.path, content.clone(), bits(item.mode, s.mode), None, secret)?,
                None if s.optional => {}
                None if secret => return Err(format!("references non-existent secret key: {}", item.key)),
                None => return Err(format!("configmap references non-existent config key: {}", item.key)),
            }
        }
        Ok(())
    }

    fn downward_files(&self, items: &[DownwardAPIVolumeFile], mode: u32, files: &mut Files) -> Result<(), String> {
        for item in items {
            let value = if let Some(field) = &item.field_ref {
                fields::of_file(self.pod, &field.field_path)
                    .ok_or_else(|| format!("unsupported fieldPath: {}", field.field_path))?
            } else if let Some(field) = &item.resource_field_ref {
                fields::of_resources(self.pod, None, &self.facts.allocatable, field)
                    .ok_or_else(|| format!("unsupported container resource : {}", field.resource))?
            } else {
                continue;
            };
            files.put(&item.path, Bytes::from(value), bits(item.mode, mode), None, false)?;
        }
        Ok(())
    }

    async fn projected_files(
        &self,
        volume: &ProjectedVolumeSource,
        files: &mut Files,
        gathered: &mut Gathered,
    ) -> Result<(), String> {
        let mode = bits(volume.default_mode, DEFAULT_MODE);
        let owner = self.common_user();
        let private = if owner.is_some() || self.fs_group().is_some() { TOKEN_MODE } else { mode };
        for source in volume.sources.iter().flatten() {
            if let Some(s) = &source.config_map {
                let selection = Selection {
                    kind: Kind::ConfigMap,
                    name: &s.name,
                    items: s.items.as_deref(),
                    mode,
                    optional: s.optional == Some(true),
                };
                self.object_files(&selection, files, gathered).await?;
            } else if let Some(s) = &source.secret {
                let selection = Selection {
                    kind: Kind::Secret,
                    name: &s.name,
                    items: s.items.as_deref(),
                    mode,
                    optional: s.optional == Some(true),
                };
                self.object_files(&selection, files, gathered).await?;
            } else if let Some(s) = &source.downward_api {
                self.downward_files(s.items.as_deref().unwrap_or_default(), mode, files)?;
            } else if let Some(s) = &source.service_account_token {
                if self.wants_content() && self.capabilities.pod.has(PodFeature::ServiceAccountTokens) {
                    let token = self
                        .sources
                        .tokens
                        .get(self.node, self.pod, s.audience.as_deref(), s.expiration_seconds)
                        .await?;
                    gathered.renew_at = Some(gathered.renew_at.map_or(token.renew_at, |at| at.min(token.renew_at)));
                    files.put(&s.path, token.text.clone(), private, s.user.or(owner), true)?;
                }
            } else if let Some(s) = &source.cluster_trust_bundle {
                if self.wants_content() {
                    let pem = trust::bundle(self.sources.client.client(), s).await?;
                    files.put(&s.path, Bytes::from(pem), mode, s.user, false)?;
                    // Nobody tells of a change of these; they change with a CA.
                    let again = tokio::time::Instant::now() + trust::REFRESH;
                    gathered.renew_at = Some(gathered.renew_at.map_or(again, |at| at.min(again)));
                }
            } else if source.pod_certificate.is_some() {
                return Err("podCertificate is not supported on virtual nodes".into());
            }
        }
        Ok(())
    }

    fn fs_group(&self) -> Option<i64> {
        self.pod.spec.as_ref()?.security_context.as_ref()?.fs_group
    }

    /// The user that every container runs as, if it is the same one. kubelet: `FsUserFrom`.
    fn common_user(&self) -> Option<i64> {
        let spec = self.pod.spec.as_ref()?;
        let of_pod = spec.security_context.as_ref().and_then(|c| c.run_as_user);
        let user = |c: &k8s_openapi::api::core::v1::Container| {
            c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod)
        };
        let mut users = spec.init_containers.iter().flatten().chain(&spec.containers).map(user);
        let first = users.next()??;
        users.all(|u| u == Some(first)).then_some(first)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
