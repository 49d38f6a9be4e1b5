//! What a scenario can say.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// One scenario. Strings may use `%root%` (before absolute paths of volumes in scripts), `%image%`,
/// `%imageid%` (a part of its ID), `%missing%` (an image that cannot be had), `%port%` (a port of its own), `%serve%`
/// (a command that serves HTTP there), `%fetch%` (one that asks it), `%node%` and `%ns%`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Scenario {
    /// A claim, in words with dashes. It is part of the namespace's name.
    pub name: String,
    /// Features of `docs/pod-support.md` that its pods use.
    #[serde(default)]
    pub needs: Vec<String>,
    /// Without them the pod is refused, on nodes that only warn as well.
    #[serde(default)]
    pub essential: bool,
    /// Features without which it has nothing to say: it is not played where one is lacking.
    #[serde(default)]
    pub only_with: Vec<String>,
    /// Features with which it has nothing to say.
    #[serde(default)]
    pub only_without: Vec<String>,
    /// Something real must run: where it does not, only [`Step::Simulated`] steps are taken.
    #[serde(default)]
    pub programs: bool,
    /// The node of its pods.
    #[serde(default = "main")]
    pub node: String,
    /// How a simulator lets its pods behave: annotations without their prefix.
    #[serde(default)]
    pub mock: BTreeMap<String, String>,
    /// What is there before the pod is.
    #[serde(default)]
    pub before: Vec<Value>,
    /// The spec of a pod named `pod`. A container's `sh` is a script; without any command it idles.
    #[serde(default)]
    pub pod: Option<Value>,
    /// More metadata of that pod.
    #[serde(default)]
    pub metadata: BTreeMap<String, Value>,
    /// What is done and what must be seen, in this order.
    pub steps: Vec<Step>,
}

fn main() -> String {
    "main".into()
}

impl Scenario {
    /// True when a part of it is about an image that cannot be had.
    pub fn needs_missing_image(&self) -> bool {
        self.pod.as_ref().is_some_and(|pod| pod.to_string().contains("%missing%"))
    }
}

/// One step. What is to be seen is waited for.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// It is so now, or soon.
    See(Expect),
    /// It is so, or has been.
    Saw(Expect),
    /// It is so, and stays so for a time.
    Stays(Stays),
    /// It has not been so until now.
    Never(Expect),
    /// There is an event `Type Reason: part of the message`.
    Event(String),
    /// There is none.
    NoEvent(String),
    /// A container's log.
    Logs(Logs),
    /// A script in a container, and what it prints.
    Exec(Exec),
    /// An object is created.
    Create(Value),
    /// An object cannot be created, and the answer says why.
    Refused(Refused),
    /// An object is changed.
    Patch(Patch),
    /// An object is deleted.
    Delete(Delete),
    /// `kubectl`, in the scenario's namespace.
    Kubectl(Kubectl),
    /// Steps that are only taken where programs run.
    Real(Vec<Step>),
    /// Steps that are only taken where they do not.
    Simulated(Vec<Step>),
}

/// How an object must be. What is not said does not matter.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Expect {
    /// A name, or its beginning and `*`. `pod` when absent.
    pub name: Option<String>,
    /// `Pod` when absent. Of others only `status` can be asked for.
    pub kind: Option<String>,
    /// There is no such object.
    #[serde(default)]
    pub gone: bool,
    /// `status.phase`
    pub phase: Option<String>,
    /// `status.reason`
    pub reason: Option<String>,
    /// A part of `status.message`.
    pub message: Option<String>,
    /// Of each container: `waiting REASON`, `running`, `ended REASON CODE`, and then `ready` or `unready`.
    #[serde(default)]
    pub states: BTreeMap<String, String>,
    /// The same of `lastState`.
    #[serde(default)]
    pub last: BTreeMap<String, String>,
    /// Restart counts: a number, or `>=` and a number.
    #[serde(default)]
    pub restarts: BTreeMap<String, Value>,
    /// `STATUS REASON` of conditions, the reason only when it matters.
    #[serde(default)]
    pub conditions: BTreeMap<String, String>,
    /// A part of the waiting message, or the terminated one, of each container.
    #[serde(default)]
    pub says: BTreeMap<String, String>,
    /// Fields of the status. Strings that begin with `~` need only be contained; `null` must be absent.
    pub status: Option<Value>,
}

/// [`Step::Stays`]
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Stays {
    /// For so long.
    pub seconds: f64,
    /// So.
    pub so: Expect,
}

/// [`Step::Logs`]
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Logs {
    /// The first container when absent.
    pub container: Option<String>,
    /// Of the run before.
    #[serde(default)]
    pub previous: bool,
    /// Lines that are in it in this order, perhaps with others between them.
    pub have: Vec<String>,
    /// What is in none of its lines.
    #[serde(default)]
    pub lack: Vec<String>,
}

/// [`Step::Exec`]
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Exec {
    /// The first container when absent.
    pub container: Option<String>,
    /// The script.
    pub sh: String,
    /// All that it prints, without white space at the ends. It is run again until it does.
    pub prints: String,
}

/// [`Step::Refused`]
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Refused {
    /// The object.
    pub create: Value,
    /// A part of the answer.
    pub says: String,
}

/// [`Step::Patch`]
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Patch {
    /// `Pod` when absent.
    pub kind: Option<String>,
    /// `pod` when absent.
    pub name: Option<String>,
    /// `status`, `resize`, `ephemeralcontainers`
    pub subresource: Option<String>,
    /// A strategic merge patch.
    pub with: Value,
}

/// [`Step::Delete`]
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Delete {
    /// `Pod` when absent.
    pub kind: Option<String>,
    /// `pod` when absent.
    pub name: Option<String>,
    /// The grace period in seconds.
    pub grace: Option<u32>,
}

/// [`Step::Kubectl`]
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Kubectl {
    /// The arguments.
    pub args: Vec<String>,
    /// A part of what it prints, both streams together.
    #[serde(default)]
    pub prints: String,
    /// It must fail.
    #[serde(default)]
    pub fails: bool,
}

/// All scenarios, as they are in the files.
pub fn load() -> Vec<Scenario> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/scenarios");
    let mut files: Vec<_> = std::fs::read_dir(dir).expect("the folder").flatten().map(|e| e.path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "yaml"));
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("readable");
        let values = serde_saphyr::from_multiple::<Value>(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        for value in values {
            let name = value["name"].as_str().unwrap_or("?").to_owned();
            let scenario = serde_json::from_value(value);
            all.push(scenario.unwrap_or_else(|e| panic!("{}: {name}: {e}", file.display())));
        }
    }
    all
}

#[test]
fn the_table_of_scenarios_can_be_read_and_names_each_once() {
    let all = load();
    let names: std::collections::BTreeSet<_> = all.iter().map(|s| &s.name).collect();
    assert_eq!(names.len(), all.len());
    for scenario in &all {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let begin: String = scenario.name.chars().take(50).collect();
        assert_eq!(all.iter().filter(|s| s.name.starts_with(&begin)).count(), 1, "{begin} begins two names");
        assert!(scenario.name.chars().all(plain), "{} names a namespace", scenario.name);
    }
}
