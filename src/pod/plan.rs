//! Pure: from what is known of a pod to the next step.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

/// Whether the provider has the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtProvider {
    /// Nobody has asked, or the answer did not come.
    #[default]
    Unknown,
    /// The provider answered that it has no such pod.
    Absent,
    /// The provider has it.
    Present,
}

/// What is known of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The API server has it no more.
    pub gone: bool,
    /// It has a deletionTimestamp.
    pub deleting: bool,
    /// Its phase is Succeeded or Failed.
    pub terminal: bool,
    /// Its status says that a provider accepted it once.
    pub accepted: bool,
    /// The provider refused it for good.
    pub refused: bool,
    /// Whether the provider has it.
    pub at_provider: AtProvider,
    /// The provider's pods do not survive this process.
    pub volatile: bool,
    /// The provider has had this pod since this process started.
    pub seen: bool,
    /// The provider says that every container is over.
    pub terminated: bool,
    /// What is known of its containers is there to be written.
    pub observed: bool,
    /// It was asked to stop with at most the grace period that now applies.
    pub stop_asked: bool,
    /// The provider was given the pod as it is now, and all that it needs of others.
    pub up_to_date: bool,
    /// It is not for this node to run: a static pod, or one of a DaemonSet where those are left alone.
    pub held: bool,
    /// `metadata.deletionGracePeriodSeconds`
    pub grace: Duration,
}

/// The next step for a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask the provider whether it has the pod.
    Ask,
    /// Give it to the provider.
    Create,
    /// Give it back to a provider that has lost it with the last process.
    Restore,
    /// Tell the provider of a change.
    Update,
    /// Ask the provider to stop it.
    Stop(Duration),
    /// Say why it does not run here, and leave it.
    Hold,
    /// Write what the provider says of it.
    WriteStatus,
    /// Its provider lost it: it has failed.
    Vanished,
    /// It has ended: write how, let the provider forget it, and delete it from the API server.
    Finish,
    /// The provider never had it: delete it from the API server.
    Delete,
    /// The API server has forgotten it: stop it at once and let the provider forget it.
    Purge,
    /// Nobody has it any more.
    Forget,
}

/// Decides the next step.
pub fn plan(o: &Observed) -> Step {
    use AtProvider::{Absent, Present, Unknown};
    if o.gone {
        return match o.at_provider {
            Absent => Step::Forget,
            Unknown | Present => Step::Purge,
        };
    }
    match (o.at_provider, o.deleting) {
        (Unknown, _) => Step::Ask,
        (Absent, true) if o.seen || o.accepted => Step::Finish,
        (Absent, true) => Step::Delete,
        (Absent, false) if o.terminal || o.refused => Step::WriteStatus,
        (Absent, false) if o.seen => Step::Vanished,
        (Absent, false) if o.accepted && o.volatile => Step::Restore,
        (Absent, false) if o.accepted => Step::Vanished,
        (Absent, false) if o.held => Step::Hold,
        (Absent, false) => Step::Create,
        (Present, true) if o.terminated => Step::Finish,
        (Present, true) if !o.stop_asked => Step::Stop(o.grace),
        (Present, false) if !o.up_to_date && !o.terminal => Step::Update,
        (Present, _) if !o.observed => Step::Ask,
        (Present, _) => Step::WriteStatus,
    }
}

/// The hash of what a pod may use: resources of its containers and of the whole.
pub fn resources_hash(pod: &Pod) -> u64 {
    let mut hasher = DefaultHasher::new();
    let spec = pod.spec.as_ref();
    let containers = spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    let resources: Vec<_> = containers.map(|c| &c.resources).collect();
    // Maps in order and plain values, which serialise the same way each time.
    serde_json::to_vec(&(resources, spec.map(|s| &s.resources))).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

/// The hash of what can change on a running pod and concerns its provider.
pub fn hash(pod: &Pod) -> u64 {
    let mut hasher = DefaultHasher::new();
    // The types are maps in order and plain values, which serialise the same way each time.
    let spec = serde_json::to_vec(&pod.spec).unwrap_or_default();
    (spec, &pod.metadata.labels, &pod.metadata.annotations).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use AtProvider::{Absent, Present};

    #[test]
    fn each_state_has_its_next_step() {
        let base = Observed { grace: Duration::from_secs(30), ..Observed::default() };
        let absent = Observed { at_provider: Absent, ..base };
        let present = Observed { at_provider: Present, observed: true, up_to_date: true, seen: true, ..base };
        let cases = [
            ("nothing is done before the provider was asked", base, Step::Ask),
            ("a new pod is created", absent, Step::Create),
            ("a pod is not created when it is over", Observed { terminal: true, ..absent }, Step::WriteStatus),
            ("a pod that is not for this node is left alone", Observed { held: true, ..absent }, Step::Hold),
            ("but goes when it is deleted", Observed { held: true, deleting: true, ..absent }, Step::Delete),
            ("and stays as it is when it runs already", Observed { held: true, ..present }, Step::WriteStatus),
            ("a refused pod is not tried again", Observed { refused: true, ..absent }, Step::WriteStatus),
            ("a pod the provider lost has failed", Observed { seen: true, ..absent }, Step::Vanished),
            ("also when a former process created it", Observed { accepted: true, ..absent }, Step::Vanished),
            (
                "but a volatile provider gets it back",
                Observed { accepted: true, volatile: true, ..absent },
                Step::Restore,
            ),
            (
                "a volatile provider that lost it while we watched does not",
                Observed { accepted: true, volatile: true, seen: true, ..absent },
                Step::Vanished,
            ),
            ("deleted before it was created", Observed { deleting: true, ..absent }, Step::Delete),
            ("deleted after the provider lost it", Observed { deleting: true, seen: true, ..absent }, Step::Finish),
            ("a deleted pod is asked to stop", Observed { deleting: true, ..present }, Step::Stop(base.grace)),
            (
                "and once asked only watched",
                Observed { deleting: true, stop_asked: true, ..present },
                Step::WriteStatus,
            ),
            (
                "until all its containers are over",
                Observed { deleting: true, terminated: true, ..present },
                Step::Finish,
            ),
            (
                "a pod that is being deleted is not updated",
                Observed { deleting: true, up_to_date: false, stop_asked: true, ..present },
                Step::WriteStatus,
            ),
            ("a change is passed on", Observed { up_to_date: false, ..present }, Step::Update),
            (
                "but not to a pod that is over",
                Observed { up_to_date: false, terminal: true, ..present },
                Step::WriteStatus,
            ),
            ("what is not known is asked", Observed { observed: false, ..present }, Step::Ask),
            ("what is known is written", present, Step::WriteStatus),
            ("force-deleted while running", Observed { gone: true, ..present }, Step::Purge),
            ("force-deleted before anyone asked", Observed { gone: true, ..base }, Step::Purge),
            ("gone everywhere", Observed { gone: true, ..absent }, Step::Forget),
        ];
        for (claim, observed, step) in cases {
            assert_eq!(plan(&observed), step, "{claim}");
        }
    }

    #[test]
    fn status_does_not_count_as_a_change_and_labels_do() {
        let mut pod = Pod::default();
        let before = hash(&pod);
        pod.status = Some(Default::default());
        pod.metadata.resource_version = Some("7".into());
        assert_eq!(hash(&pod), before);
        pod.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
        assert_ne!(hash(&pod), before);
    }
}
