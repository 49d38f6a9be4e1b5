//! What of a pod a provider can do: a set of [`PodFeature`]s.
//!
//! A provider declares its set in [`Capabilities::pod`](super::Capabilities::pod). The agent compares it
//! with what a pod asks for, and tells the pod's author what will be missing. The table in
//! `docs/pod-support.md` is made from the same sets.

use std::fmt;

macro_rules! features {
    ($($(#[doc = $doc:literal])+ $variant:ident $word:literal $group:literal,)+) => {
        /// One thing that a pod may ask for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum PodFeature {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl PodFeature {
            /// Every feature, in the order of the documentation.
            pub const ALL: &'static [PodFeature] = &[$(PodFeature::$variant),+];

            /// The word for statuses, events and the documentation.
            pub const fn word(self) -> &'static str {
                match self { $(PodFeature::$variant => $word),+ }
            }

            /// What it belongs to, for the documentation.
            pub const fn group(self) -> &'static str {
                match self { $(PodFeature::$variant => $group),+ }
            }

            /// What it is, in a line, for the documentation.
            pub const fn description(self) -> &'static str {
                match self { $(PodFeature::$variant => concat!($($doc),+)),+ }
            }
        }
    };
}

features! {
    /// `volumes[].configMap`
    ConfigMapVolumes "configMapVolumes" "Volumes",
    /// `volumes[].secret`
    SecretVolumes "secretVolumes" "Volumes",
    /// `volumes[].downwardAPI`
    DownwardApiVolumes "downwardAPIVolumes" "Volumes",
    /// `volumes[].projected`
    ProjectedVolumes "projectedVolumes" "Volumes",
    /// `volumes[].projected.sources[].serviceAccountToken`, refreshed before it expires
    ServiceAccountTokens "serviceAccountTokens" "Volumes",
    /// `volumes[].projected.sources[].clusterTrustBundle`
    ClusterTrustBundles "clusterTrustBundles" "Volumes",
    /// Changes of ConfigMaps, Secrets, labels and annotations reach the files of running pods
    VolumeUpdates "volumeUpdates" "Volumes",
    /// `volumes[].emptyDir`
    EmptyDir "emptyDir" "Volumes",
    /// `volumes[].emptyDir.medium: Memory`
    MemoryEmptyDir "memoryEmptyDir" "Volumes",
    /// `volumes[].emptyDir.sizeLimit`
    EmptyDirSizeLimit "emptyDirSizeLimit" "Volumes",
    /// `volumes[].hostPath`
    HostPath "hostPath" "Volumes",
    /// `volumes[].persistentVolumeClaim`
    PersistentVolumeClaims "persistentVolumeClaims" "Volumes",
    /// `volumes[].ephemeral`
    EphemeralVolumes "ephemeralVolumes" "Volumes",
    /// `volumes[].csi`
    CsiVolumes "csiVolumes" "Volumes",
    /// `volumes[].image`
    ImageVolumes "imageVolumes" "Volumes",
    /// `volumes[].nfs`
    NfsVolumes "nfsVolumes" "Volumes",
    /// `volumes[]` of any other kind
    OtherVolumes "otherVolumes" "Volumes",
    /// `volumeMounts[].subPath` and `subPathExpr`
    SubPath "subPath" "Volumes",
    /// `volumeMounts[].mountPropagation` other than `None`
    MountPropagation "mountPropagation" "Volumes",
    /// `volumeDevices`
    VolumeDevices "volumeDevices" "Volumes",
    /// `securityContext.fsGroup` and `supplementalGroups`
    FsGroup "fsGroup" "Volumes",

    /// `initContainers`, one after the other
    InitContainers "initContainers" "Containers",
    /// `initContainers[].restartPolicy: Always`
    Sidecars "sidecars" "Containers",
    /// More than one entry in `containers`
    MultipleContainers "multipleContainers" "Containers",
    /// `kubectl debug`: containers added to a running pod
    EphemeralContainers "ephemeralContainers" "Containers",
    /// `containers[].restartPolicy` and `restartPolicyRules`
    ContainerRestartRules "containerRestartRules" "Containers",
    /// `resources.limits` of cpu and memory are enforced
    ResourceLimits "resourceLimits" "Containers",
    /// Resources of a running pod can change in place
    Resize "resize" "Containers",
    /// `stdin` and `tty`
    Stdin "stdin" "Containers",
    /// `terminationMessagePath` and `terminationMessagePolicy`
    TerminationMessage "terminationMessage" "Containers",
    /// `imagePullSecrets`
    ImagePullSecrets "imagePullSecrets" "Containers",
    /// `imagePullPolicy`
    ImagePullPolicy "imagePullPolicy" "Containers",
    /// `enableServiceLinks`: variables with the addresses of services
    ServiceLinks "serviceLinks" "Containers",
    /// `fieldRef: status.podIP` and `status.podIPs` in the environment
    PodIpInEnvironment "podIPInEnvironment" "Containers",

    /// `startupProbe`
    StartupProbes "startupProbes" "Probes and hooks",
    /// `readinessProbe`
    ReadinessProbes "readinessProbes" "Probes and hooks",
    /// `livenessProbe`
    LivenessProbes "livenessProbes" "Probes and hooks",
    /// `exec` in a probe
    ExecProbes "execProbes" "Probes and hooks",
    /// `httpGet` in a probe
    HttpProbes "httpProbes" "Probes and hooks",
    /// `tcpSocket` in a probe
    TcpProbes "tcpProbes" "Probes and hooks",
    /// `grpc` in a probe
    GrpcProbes "grpcProbes" "Probes and hooks",
    /// `lifecycle.postStart`
    PostStart "postStart" "Probes and hooks",
    /// `lifecycle.preStop`
    PreStop "preStop" "Probes and hooks",
    /// `lifecycle.stopSignal`
    StopSignal "stopSignal" "Probes and hooks",

    /// `restartPolicy`, with the back-off of kubelet
    RestartPolicy "restartPolicy" "Pod",
    /// `activeDeadlineSeconds`
    ActiveDeadline "activeDeadline" "Pod",
    /// `terminationGracePeriodSeconds`
    GracePeriod "gracePeriod" "Pod",
    /// `hostNetwork`
    HostNetwork "hostNetwork" "Pod",
    /// `hostPID`
    HostPid "hostPID" "Pod",
    /// `hostIPC`
    HostIpc "hostIPC" "Pod",
    /// `hostUsers: false`
    UserNamespaces "userNamespaces" "Pod",
    /// `shareProcessNamespace`
    ShareProcessNamespace "shareProcessNamespace" "Pod",
    /// `containers[].ports[].hostPort`
    HostPorts "hostPorts" "Pod",
    /// `hostname`, `subdomain` and `setHostnameAsFQDN`
    Hostname "hostname" "Pod",
    /// `hostAliases`
    HostAliases "hostAliases" "Pod",
    /// `dnsConfig` and `dnsPolicy` other than `ClusterFirst`
    DnsConfig "dnsConfig" "Pod",
    /// `runtimeClassName`
    RuntimeClass "runtimeClass" "Pod",
    /// `resourceClaims`
    ResourceClaims "resourceClaims" "Pod",

    /// `runAsUser`, `runAsGroup` and `runAsNonRoot`
    RunAsUser "runAsUser" "Security",
    /// `privileged`
    Privileged "privileged" "Security",
    /// `capabilities`
    LinuxCapabilities "capabilities" "Security",
    /// `readOnlyRootFilesystem`
    ReadOnlyRootFilesystem "readOnlyRootFilesystem" "Security",
    /// `allowPrivilegeEscalation: false`
    NoPrivilegeEscalation "noPrivilegeEscalation" "Security",
    /// `seccompProfile`
    Seccomp "seccomp" "Security",
    /// `appArmorProfile`
    AppArmor "appArmor" "Security",
    /// `seLinuxOptions`
    SeLinux "seLinux" "Security",
    /// `sysctls`
    Sysctls "sysctls" "Security",
    /// `procMount`
    ProcMount "procMount" "Security",
    /// `windowsOptions`
    WindowsOptions "windowsOptions" "Security",
}

impl fmt::Display for PodFeature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A set of [`PodFeature`]s. The default is the empty one: what a provider does not declare, it cannot do.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct PodFeatures(u128);

impl PodFeatures {
    /// Nothing but a container that runs.
    pub const NONE: Self = Self(0);

    /// Everything, which only a simulator can.
    pub const ALL: Self = Self::of(PodFeature::ALL);

    /// The set of these features.
    pub const fn of(features: &[PodFeature]) -> Self {
        let (mut bits, mut n) = (0, 0);
        while n < features.len() {
            bits |= 1 << features[n] as u32;
            n += 1;
        }
        Self(bits)
    }

    /// This set and another one.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set without these features.
    pub const fn without(self, features: &[PodFeature]) -> Self {
        Self(self.0 & !Self::of(features).0)
    }

    /// True when the feature is in the set.
    pub const fn has(self, feature: PodFeature) -> bool {
        self.0 & (1 << feature as u32) != 0
    }

    /// The features in the order of the documentation.
    pub fn iter(self) -> impl Iterator<Item = PodFeature> {
        PodFeature::ALL.iter().copied().filter(move |f| self.has(*f))
    }
}

impl fmt::Debug for PodFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(PodFeature::word)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_in_and_nothing_else() {
        assert!(PodFeature::ALL.len() <= 128);
        let set = PodFeatures::of(&[PodFeature::HostPath, PodFeature::WindowsOptions]);
        assert_eq!(set.iter().collect::<Vec<_>>(), [PodFeature::HostPath, PodFeature::WindowsOptions]);
        assert_eq!(set.without(&[PodFeature::HostPath]).iter().count(), 1);
        assert_eq!(PodFeatures::ALL.iter().count(), PodFeature::ALL.len());
        assert!(!PodFeatures::default().has(PodFeature::ConfigMapVolumes));
        assert_eq!(format!("{set:?}"), r#"{"hostPath", "windowsOptions"}"#);
    }

    #[test]
    fn words_are_unique() {
        let words: std::collections::BTreeSet<_> = PodFeature::ALL.iter().map(|f| f.word()).collect();
        assert_eq!(words.len(), PodFeature::ALL.len());
    }
}
