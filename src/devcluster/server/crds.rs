//! CustomResourceDefinitions: accepted, served, and cleaned up after.
//!
//! A task follows the CRDs. For each it checks that its names are free, says so in its conditions, and gives its
//! kinds to the registry; for one that is being deleted it deletes the instances and then lets go of it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::delete::Deleted;
use super::options::{DeleteOptions, FieldValidation};
use super::strategy::set_condition;
use super::{Api, Source, Write};
use crate::auth::User;
use crate::kinds::{Kind, custom};
use crate::status::{ApiError, Result};
use crate::store::{Interest, Key, Object, Range, ResourceId};

const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";
const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn conditions(crd: &Value, kind: &str) -> bool {
    let list = crd["status"]["conditions"].as_array().into_iter().flatten();
    list.into_iter().any(|c| c["type"] == kind && c["status"] == "True")
}

/// A CRD that is about to be deleted: its instances go first. apiextensions: the registry's `Delete`.
pub(super) fn hold(crd: &mut Value) {
    let finalizers = crd["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    if !finalizers.contains(&json!(FINALIZER)) {
        crd["metadata"]["finalizers"] = json!([finalizers, vec![json!(FINALIZER)]].concat());
    }
    let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    set_condition(crd, "Terminating", "True", "InstanceDeletionPending", message);
}

/// The names of a CRD that no other kind of its group has, and why they are not all; the last conflict is told.
/// apiextensions: `calculateNamesAndConditions`.
fn accepted_names(api: &Api, crd: &Value) -> (Value, Option<(&'static str, String)>) {
    let (group, names) = (text(&crd["spec"]["group"]), &crd["spec"]["names"]);
    let kinds = api.registry.kinds();
    let others = || kinds.iter().filter(|k| &*k.group == group && *k.plural != *text(&names["plural"]));
    let taken = |name: &str| {
        others().any(|k| *k.plural == *name || *k.singular == *name || k.short_names.iter().any(|s| **s == *name))
    };
    let kind_taken = |name: &str| others().any(|k| *k.kind == *name || *k.list_kind == *name);
    let mut accepted = crd["status"]["acceptedNames"].clone();
    if !accepted.is_object() {
        accepted = json!({"plural": "", "kind": ""});
    }
    let mut conflict = None;
    let short: Vec<&str> = names["shortNames"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let own = |key: &str| vec![text(&names[key])];
    for (key, reason, given, taken) in [
        ("plural", "PluralConflict", own("plural"), &taken as &dyn Fn(&str) -> bool),
        ("singular", "SingularConflict", own("singular"), &taken),
        ("shortNames", "ShortNamesConflict", short, &taken),
        ("kind", "KindConflict", own("kind"), &kind_taken),
        ("listKind", "ListKindConflict", own("listKind"), &kind_taken),
    ] {
        match given.into_iter().find(|name| taken(name)) {
            Some(name) => conflict = Some((reason, format!("{name:?} is already in use"))),
            None if names[key].is_null() => super::create::remove(&mut accepted, key),
            None => accepted[key] = names[key].clone(),
        }
    }
    match names["categories"].is_null() {
        true => super::create::remove(&mut accepted, "categories"),
        false => accepted["categories"] = names["categories"].clone(),
    }
    (accepted, conflict)
}

impl Api {
    /// Follows the CRDs until the server stops. Those that are there already are served before this returns its task.
    pub(crate) fn follow_crds(self: &Arc<Self>) -> impl Future<Output = ()> + Send + use<> {
        let api = self.clone();
        let resource = api.resource(GROUP, PLURAL);
        let (objects, _, mut live) = resource.list_and_watch(&api.store, None, Interest::All, |_| true);
        for object in &objects {
            api.settle(object);
        }
        let settle = move |api: Arc<Self>, name: Box<str>| {
            let resource = api.resource(GROUP, PLURAL);
            match resource.get(&Key::new("", &name)) {
                Some(object) => api.settle(&object),
                None => api.serve(&name, Vec::new()),
            }
        };
        async move {
            loop {
                let event = tokio::select! {
                    () = api.stopping.cancelled() => return,
                    event = live.events.recv() => event,
                };
                match event {
                    Some(event) => settle(api.clone(), event.object.key.name.clone()),
                    None => {
                        // Cut off: take everything from the start.
                        let (objects, _, again) = resource.list_and_watch(&api.store, None, Interest::All, |_| true);
                        objects.iter().for_each(|object| api.settle(object));
                        live = again;
                    }
                }
            }
        }
    }

    /// Brings what is served in line with one CRD.
    fn settle(self: &Arc<Self>, object: &Object) {
        let crd = object.value();
        let name = &*object.key.name;
        if crd["metadata"]["deletionTimestamp"].is_string() {
            return self.clean_up(&crd, name);
        }
        let (names, conflict) = accepted_names(self, &crd);
        if conflict.is_none() || conditions(&crd, "Established") {
            let kinds = custom::kinds(&crd);
            if let Some(kind) = kinds.first() {
                self.store.resource(&kind.storage).set_fields(&kind.fields);
            }
            self.serve(name, kinds);
        }
        let done = self.change_crd(name, "status", |old| {
            let mut crd = old.clone();
            match &conflict {
                None => {
                    set_condition(&mut crd, "NamesAccepted", "True", "NoConflicts", "no conflicts found");
                    let message = "the initial names have been accepted";
                    set_condition(&mut crd, "Established", "True", "InitialNamesAccepted", message);
                }
                Some((reason, message)) => {
                    set_condition(&mut crd, "NamesAccepted", "False", reason, message);
                    if !conditions(&crd, "Established") {
                        let message = "not all names are accepted";
                        set_condition(&mut crd, "Established", "False", "NotAccepted", message);
                    }
                }
            }
            crd["status"]["acceptedNames"] = names.clone();
            let versions = crd["spec"]["versions"].as_array().into_iter().flatten();
            let storage = versions.into_iter().find(|v| v["storage"] == true).map(|v| v["name"].clone());
            if !crd["status"]["storedVersions"].is_array() {
                crd["status"]["storedVersions"] = json!([]);
            }
            if let (Some(storage), Some(stored)) = (storage, crd["status"]["storedVersions"].as_array_mut())
                && !stored.contains(&storage)
            {
                stored.push(storage);
            }
            Ok(crd)
        });
        report(name, done);
    }

    /// Deletes the instances and lets go of the CRD when there are none left.
    fn clean_up(self: &Arc<Self>, crd: &Value, name: &str) {
        let finalizers = crd["metadata"]["finalizers"].as_array().into_iter().flatten();
        if !finalizers.into_iter().any(|f| f == FINALIZER) {
            return;
        }
        let id = ResourceId::new(text(&crd["spec"]["group"]), text(&crd["spec"]["names"]["plural"]));
        let resource = self.store.resource(&id);
        report(
            name,
            self.change_crd(name, "status", |old| {
                let mut crd = old.clone();
                let message = "CustomResource deletion is in progress";
                set_condition(&mut crd, "Terminating", "True", "InstanceDeletionInProgress", message);
                Ok(crd)
            }),
        );
        let kinds = custom::kinds(crd);
        if let Some(kind) = kinds.first() {
            self.delete_instances(kind);
        }
        if resource.len() > 0 {
            return self.clean_up_later(name, &id);
        }
        report(
            name,
            self.change_crd(name, "", |old| {
                let mut crd = old.clone();
                if let Some(finalizers) = crd["metadata"]["finalizers"].as_array_mut() {
                    finalizers.retain(|f| f != FINALIZER);
                }
                Ok(crd)
            }),
        );
        self.serve(name, Vec::new());
        self.store.forget(&id);
    }

    /// Serves these kinds as those of a CRD, and lists their groups.
    fn serve(&self, crd: &str, kinds: Vec<Kind>) {
        self.registry.set_custom(crd, kinds);
        self.keep_api_services();
    }

    fn delete_instances(&self, kind: &Kind) {
        let resource = self.store.resource(&kind.storage);
        let user = User::default();
        let write = internal(kind, &resource, "", &user);
        let page = resource.list(&self.store, &Range::default(), |_| true);
        for object in page.map(|page| page.objects).unwrap_or_default() {
            match self.delete(&write, &object.key, &DeleteOptions::default()) {
                Ok(Deleted::Gone(_) | Deleted::Pending(_)) => {}
                Err(error) => tracing::debug!(%error, "deleting an instance of a CRD that goes away"),
            }
        }
    }

    /// Looks again when the next instance is gone.
    fn clean_up_later(self: &Arc<Self>, name: &str, id: &ResourceId) {
        let (api, name) = (self.clone(), name.to_owned());
        let resource = self.store.resource(id);
        let (_, _, mut live) = resource.list_and_watch(&self.store, None, Interest::All, |_| false);
        tokio::spawn(async move {
            while resource.len() > 0 {
                tokio::select! {
                    () = api.stopping.cancelled() => return,
                    event = live.events.recv() => if event.is_none() { break },
                }
            }
            if let Some(crd) = api.resource(GROUP, PLURAL).get(&Key::new("", &name)) {
                api.settle(&crd);
            }
        });
    }

    fn change_crd(&self, name: &str, subresource: &str, change: impl Fn(&Value) -> Result<Value>) -> Result<()> {
        let kinds = self.registry.kinds();
        let Some(kind) = kinds.find(GROUP, "v1", PLURAL) else { return Ok(()) };
        let resource = self.store.resource(&kind.storage);
        let user = User::default();
        self.modify(&internal(kind, &resource, subresource, &user), &Key::new("", name), change).map(drop)
    }
}

/// A write by the server itself.
pub(crate) fn internal<'a>(
    kind: &'a Kind,
    resource: &'a crate::store::Resource,
    subresource: &'a str,
    user: &'a User,
) -> Write<'a> {
    Write {
        kind,
        resource,
        subresource,
        manager: "kube-apiserver",
        user,
        dry_run: false,
        validation: FieldValidation::Ignore,
        source: Source::Body,
        duplicates: &[],
        body: &[],
    }
}

fn report(name: &str, result: Result<(), ApiError>) {
    match result {
        Err(error) if error.code != 404 => tracing::warn!(crd = name, %error, "cannot keep a CRD up to date"),
        _ => {}
    }
}
