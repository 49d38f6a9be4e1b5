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
use crate::schema::Schema;
use crate::status::{ApiError, FieldError, Result};
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

/// Fills in the names that follow from others.
pub(crate) fn default(crd: &mut Value) {
    let Some(spec) = crd["spec"].as_object_mut() else { return };
    let conversion = spec.entry("conversion").or_insert_with(|| json!({}));
    if conversion.is_object() && !conversion["strategy"].is_string() {
        conversion["strategy"] = "None".into();
    }
    let Some(names) = spec.get_mut("names").filter(|names| names.is_object()) else { return };
    let kind = text(&names["kind"]).to_owned();
    if text(&names["singular"]).is_empty() && !kind.is_empty() {
        names["singular"] = kind.to_lowercase().into();
    }
    if text(&names["listKind"]).is_empty() && !kind.is_empty() {
        names["listKind"] = format!("{kind}List").into();
    }
}

/// What is wrong with a CRD.
pub(crate) fn validate(crd: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &crd["spec"];
    let (group, names) = (text(&spec["group"]), &spec["names"]);
    let wanted = format!("{}.{group}", text(&names["plural"]));
    if crd["metadata"]["name"] != wanted.as_str() {
        errors.push(FieldError::invalid(
            "metadata.name",
            &crd["metadata"]["name"],
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else if !group.contains('.') {
        errors.push(FieldError::invalid("spec.group", &spec["group"], "should be a domain with at least one dot"));
    }
    for name in ["plural", "singular", "kind", "listKind"] {
        if text(&names[name]).is_empty() {
            errors.push(FieldError::required(format!("spec.names.{name}"), ""));
        }
    }
    match text(&spec["scope"]) {
        "" => errors.push(FieldError::required("spec.scope", "")),
        "Cluster" | "Namespaced" => {}
        _ => errors.push(FieldError::not_supported("spec.scope", &spec["scope"], &["Cluster", "Namespaced"])),
    }
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if versions.iter().filter(|v| v["storage"] == true).count() != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", &spec["versions"], detail));
    }
    for (i, version) in versions.iter().enumerate() {
        let field = format!("spec.versions[{i}]");
        if text(&version["name"]).is_empty() {
            errors.push(FieldError::required(format!("{field}.name"), ""));
        }
        let schema = &version["schema"]["openAPIV3Schema"];
        if !schema.is_object() {
            errors.push(FieldError::required(format!("{field}.schema.openAPIV3Schema"), "schemas are required"));
            continue;
        }
        if let Err(faults) = Schema::from_crd(schema) {
            errors.extend(faults.into_iter().map(|mut fault| {
                fault.field = format!("{field}.schema.openAPIV3Schema.{}", fault.field);
                fault
            }));
        }
    }
    errors
}

/// Names that another kind of the group has already.
fn name_conflict(api: &Api, crd: &Value) -> Option<(&'static str, String)> {
    let (group, names) = (text(&crd["spec"]["group"]), &crd["spec"]["names"]);
    let kinds = api.registry.kinds();
    let others = || kinds.iter().filter(|k| &*k.group == group && *k.plural != *text(&names["plural"]));
    let taken = |name: &str| {
        others().any(|k| *k.plural == *name || *k.singular == *name || k.short_names.iter().any(|s| **s == *name))
    };
    let short: Vec<&str> = names["shortNames"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if taken(text(&names["singular"])) {
        return Some(("SingularConflict", format!("{:?} is already in use", text(&names["singular"]))));
    }
    if let Some(name) = short.into_iter().find(|name| taken(name)) {
        return Some(("ShortNamesConflict", format!("{name:?} is already in use")));
    }
    let kind = text(&names["kind"]);
    if others().any(|k| *k.kind == *kind || *k.list_kind == *kind) {
        return Some(("KindConflict", format!("{kind:?} is already in use")));
    }
    None
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
        let accepted = name_conflict(self, &crd);
        if accepted.is_none() || conditions(&crd, "Established") {
            let kinds = custom::kinds(&crd);
            if let Some(kind) = kinds.first() {
                self.store.resource(&kind.storage).set_fields(&kind.fields);
            }
            self.serve(name, kinds);
        }
        let done = self.change_crd(name, "status", |old| {
            let mut crd = old.clone();
            match &accepted {
                None => {
                    set_condition(&mut crd, "NamesAccepted", "True", "NoConflicts", "no conflicts found");
                    let message = "the initial names have been accepted";
                    set_condition(&mut crd, "Established", "True", "InitialNamesAccepted", message);
                    crd["status"]["acceptedNames"] = crd["spec"]["names"].clone();
                }
                Some((reason, message)) => {
                    set_condition(&mut crd, "NamesAccepted", "False", reason, message);
                    if !conditions(&crd, "Established") {
                        let message = "not all names are accepted";
                        set_condition(&mut crd, "Established", "False", "NotAccepted", message);
                    }
                    if crd["status"]["acceptedNames"].is_null() {
                        crd["status"]["acceptedNames"] = json!({"plural": "", "kind": ""});
                    }
                }
            }
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
        let held = self.change_crd(name, "", |old| {
            let mut crd = old.clone();
            let finalizers = crd["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            if !finalizers.contains(&json!(FINALIZER)) && !crd["metadata"]["deletionTimestamp"].is_string() {
                crd["metadata"]["finalizers"] = json!([finalizers, vec![json!(FINALIZER)]].concat());
            }
            Ok(crd)
        });
        for result in [done, held] {
            report(name, result);
        }
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
    }
}

fn report(name: &str, result: Result<(), ApiError>) {
    match result {
        Err(error) if error.code != 404 => tracing::warn!(crd = name, %error, "cannot keep a CRD up to date"),
        _ => {}
    }
}
