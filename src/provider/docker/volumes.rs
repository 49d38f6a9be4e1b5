//! Which of a container's mounts are folders of this machine, which are volumes of the engine, and which are
//! copied into it before it starts.

use std::path::{Path, PathBuf};

use super::body::{Place, Source};
use super::names;
use crate::provider::runtime::{ContainerSpec, Mount};
use crate::provider::{ProviderError, Result};

/// From this version of its API on, Docker mounts a part of a volume.
const SUB_PATHS: usize = 45;

/// What a container is to see.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    pub mounted: Vec<Place>,
    /// From a path here to a path in the container.
    pub copied: Vec<(PathBuf, String)>,
}

impl Places {
    /// Shows a file as `/etc/hosts`, unless the pod mounts one of its own.
    pub fn add_hosts(&mut self, file: &Path) -> Result<()> {
        const HOSTS: &str = "/etc/hosts";
        if self.mounted.iter().all(|place| place.target != HOSTS) {
            let (source, target) = (Source::Path(text(file)?), HOSTS.to_owned());
            self.mounted.push(Place { source, target, read_only: false, propagation: None });
        }
        Ok(())
    }
}

/// What the engine is able to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Able {
    pub copy: bool,
    pub podman: bool,
    pub minor: usize,
}

/// Sorts a container's mounts; `engine` names the pod's volumes that are the engine's.
pub(super) fn places(spec: &ContainerSpec, engine: &[&str], able: Able) -> Result<Places> {
    let mut places = Places::default();
    for mount in &spec.mounts {
        let is_part = mount.source.starts_with(spec.dir.join("parts"));
        if is_part && able.copy {
            places.copied.push((mount.source.clone(), mount.target.clone()));
            continue;
        }
        let source = match engine.contains(&mount.volume.as_str()) && !is_part {
            true => {
                let sub_path = sub_path(spec, mount);
                if sub_path.is_some() && (able.podman || able.minor < SUB_PATHS) {
                    return Err(refuse(format!(
                        "subPath of volume {:?}: this engine cannot mount a part of its own volumes",
                        mount.volume
                    )));
                }
                Source::Volume { name: names::volume(&spec.container.pod, &mount.volume), sub_path }
            }
            false if able.copy => {
                return Err(refuse(format!("volume {:?} is on another machine than the engine", mount.volume)));
            }
            false => Source::Path(text(&mount.source)?),
        };
        places.mounted.push(Place {
            source,
            target: mount.target.clone(),
            read_only: mount.read_only,
            propagation: mount.propagation.clone(),
        });
    }
    if !able.copy {
        places.mounted.push(Place {
            source: Source::Path(text(&spec.termination_message_file)?),
            target: spec.termination_message_path.clone(),
            read_only: false,
            propagation: None,
        });
    }
    Ok(places)
}

fn refuse(message: String) -> ProviderError {
    ProviderError::Rejected { reason: "CreateContainerConfigError".into(), message }
}

fn text(path: &Path) -> Result<String> {
    let absolute = std::path::absolute(path).map_err(|e| refuse(format!("{}: {e}", path.display())))?;
    absolute.into_os_string().into_string().map_err(|p| refuse(format!("{p:?} is not UTF-8")))
}

/// The part of a volume that a mount is for.
fn sub_path(spec: &ContainerSpec, mount: &Mount) -> Option<String> {
    // <pod>/containers/<name>/<attempt>
    let root = spec.dir.ancestors().nth(3)?.join("volumes").join(&mount.volume);
    let real = root.canonicalize().unwrap_or_else(|_| root.clone());
    let rest = mount.source.strip_prefix(&root).or_else(|_| mount.source.strip_prefix(&real)).ok()?;
    rest.to_str().filter(|p| !p.is_empty()).map(str::to_owned)
}
