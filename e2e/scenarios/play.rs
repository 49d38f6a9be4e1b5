//! Taking the steps of a scenario.

use std::time::Duration;

use kube::api::{DeleteParams, PatchParams};
use serde_json::{Value, json};

use super::adapt::{self, Words};
use super::expect;
use super::table::{Delete, Exec, Expect, Logs, Patch, Scenario, Step};
use super::world::World;
use crate::support::{lost_output, objects};

/// How long a step may take until it is so: generous, since dozens run at the same time on a busy machine.
const PATIENCE: Duration = Duration::from_secs(150);

struct Player<'a> {
    world: &'a World,
    scenario: &'a Scenario,
    words: Words,
    ns: String,
    node: String,
}

/// Plays a scenario and clears it away. The complaint tells all that is known.
pub async fn play(world: &World, scenario: &Scenario, n: usize) -> Result<(), String> {
    let (ns, node) = (world.namespace(&scenario.name), world.node(&scenario.node));
    let words = Words::new(&world.stage, &node, &ns, n);
    let player = Player { world, scenario, words, ns, node };
    let played = player.play().await.map_err(|why| format!("{why}\n{}", player.story()));
    let deleted = world.api("Namespace", "").delete(&player.ns, &DeleteParams::default()).await;
    played.and(deleted.map(drop).map_err(|e| format!("deleting the namespace: {e}")))
}

impl Player<'_> {
    async fn play(&self) -> Result<(), String> {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.ns}});
        self.create(namespace).await?;
        for object in &self.scenario.before {
            self.create(object.clone()).await?;
        }
        if let Some(pod) = adapt::pod(self.scenario) {
            self.create(pod).await?;
        }
        let lacking: Vec<&String> = self.scenario.needs.iter().filter(|f| !self.world.features.contains(*f)).collect();
        if !lacking.is_empty() {
            return self.see_refusal(&lacking).await;
        }
        let all = !self.scenario.programs || self.world.stage.programs;
        let steps = self.scenario.steps.iter().filter(|s| all || matches!(s, Step::Simulated(_)));
        for (n, step) in steps.enumerate() {
            Box::pin(self.step(step)).await.map_err(|why| format!("step {} ({step:?}): {why}", n + 1))?;
        }
        Ok(())
    }

    /// The provider cannot do it: the author is told, and the pod runs or fails as the node says.
    async fn see_refusal(&self, lacking: &[&String]) -> Result<(), String> {
        for feature in lacking {
            self.see_event(&format!("Warning UnsupportedField: ({feature})")).await?;
        }
        if self.scenario.essential || self.scenario.node == "strict" {
            let refused = "{phase: Failed, reason: UnsupportedField}";
            self.see(&serde_saphyr::from_str(refused).map_err(|e| format!("{e}"))?).await
        } else {
            self.see(&Expect { status: Some(json!({"startTime": "~20"})), ..Expect::default() }).await?;
            self.never(&Expect { reason: Some("UnsupportedField".into()), ..Expect::default() })
        }
    }

    async fn step(&self, step: &Step) -> Result<(), String> {
        match step {
            Step::See(expect) => self.see(expect).await,
            Step::Saw(expect) => self.world.until(PATIENCE, async || self.saw(&self.filled(expect))).await,
            Step::Stays(stays) => {
                self.see(&stays.so).await?;
                let expect = self.filled(&stays.so);
                let changed = async || match self.check(&expect).await {
                    Ok(()) => Err(String::new()),
                    Err(why) => Ok(why),
                };
                match self.world.until(Duration::from_secs_f64(stays.seconds), changed).await {
                    Ok(why) => Err(why),
                    Err(_) => Ok(()),
                }
            }
            Step::Never(expect) => self.never(&self.filled(expect)),
            Step::Event(event) => self.see_event(&self.words.fill(event)).await,
            Step::NoEvent(event) => match self.has_event(&self.words.fill(event)) {
                true => Err("there is such an event".into()),
                false => Ok(()),
            },
            Step::Logs(logs) => self.world.until(PATIENCE, async || self.logs(logs).await).await,
            Step::Exec(exec) => self.world.until(PATIENCE, async || self.exec(exec).await).await,
            Step::Create(object) => self.create(object.clone()).await,
            Step::Refused(refused) => match self.create(refused.create.clone()).await {
                Ok(()) => Err("it was created".into()),
                Err(said) if said.contains(&refused.says) => Ok(()),
                Err(said) => Err(said),
            },
            Step::Patch(patch) => self.patch(patch).await,
            Step::Delete(delete) => self.delete(delete).await,
            Step::Kubectl(kubectl) => {
                let args: Vec<String> = kubectl.args.iter().map(|a| self.words.fill(a)).collect();
                let (ok, said) = self.world.until(PATIENCE, async || self.whole(&args).await).await?;
                match ok != kubectl.fails && said.contains(&self.words.fill(&kubectl.prints)) {
                    true => Ok(()),
                    false => Err(format!("kubectl said {said:?}")),
                }
            }
            Step::Real(steps) => self.steps(steps, self.world.stage.programs).await,
            Step::Simulated(steps) => self.steps(steps, !self.world.stage.programs).await,
        }
    }

    async fn steps(&self, steps: &[Step], taken: bool) -> Result<(), String> {
        for step in steps.iter().filter(|_| taken) {
            Box::pin(self.step(step)).await.map_err(|why| format!("{step:?}: {why}"))?;
        }
        Ok(())
    }

    fn filled(&self, expect: &Expect) -> Expect {
        let mut expect = expect.clone();
        if let Some(status) = &mut expect.status {
            self.words.fill_all(status);
        }
        for text in expect.says.values_mut().chain(&mut expect.message) {
            *text = self.words.fill(text);
        }
        expect
    }

    async fn see(&self, expect: &Expect) -> Result<(), String> {
        let expect = self.filled(expect);
        self.world.until(PATIENCE, async || self.check(&expect).await).await
    }

    /// Whether it is so now.
    async fn check(&self, expect: &Expect) -> Result<(), String> {
        let name = expect.name.as_deref().unwrap_or("pod");
        if let Some(kind) = &expect.kind {
            return match (self.world.get(kind, &self.ns, name).await?, expect.gone) {
                (None, true) => Ok(()),
                (Some(_), true) => Err(format!("{kind} {name} is still there")),
                (None, false) => Err(format!("there is no {kind} {name}")),
                (Some(object), false) => expect.check(&object),
            };
        }
        let pods = self.world.pods(&self.ns, name);
        let now: Vec<_> = pods.iter().filter_map(|all| all.last()?.clone()).collect();
        if expect.gone {
            return if now.is_empty() { Ok(()) } else { Err(format!("pod {name} is still there")) };
        }
        let mut complaint = format!("there is no pod {name}");
        for pod in now {
            match expect.check(&pod) {
                Ok(()) => return Ok(()),
                Err(why) => complaint = why,
            }
        }
        Err(complaint)
    }

    fn saw(&self, expect: &Expect) -> Result<(), String> {
        let pods = self.world.pods(&self.ns, expect.name.as_deref().unwrap_or("pod"));
        let mut complaint = "there is no such pod".to_owned();
        for version in pods.iter().flatten().flatten() {
            match expect.check(version) {
                Ok(()) => return Ok(()),
                Err(why) => complaint = why,
            }
        }
        Err(complaint)
    }

    fn never(&self, expect: &Expect) -> Result<(), String> {
        self.saw(expect).map_or(Ok(()), |()| Err("it was so".into()))
    }

    fn has_event(&self, wanted: &str) -> bool {
        let (head, part) = wanted.split_once(": ").unwrap_or((wanted, ""));
        self.world.events(&self.ns).iter().any(|e| e.head == head && e.message.contains(part))
    }

    async fn see_event(&self, wanted: &str) -> Result<(), String> {
        let seen = async || self.has_event(wanted).then_some(()).ok_or_else(|| format!("no event {wanted:?}"));
        self.world.until(PATIENCE, seen).await
    }

    async fn logs(&self, logs: &Logs) -> Result<(), String> {
        let mut args = vec!["logs".to_owned(), "pod".into()];
        args.extend(logs.container.iter().flat_map(|c| ["-c".to_owned(), c.clone()]));
        args.extend(logs.previous.then(|| "--previous".to_owned()));
        let (_, out, err) = self.world.kubectl(&self.ns, &args).await;
        let mut lines = out.lines();
        let missing = logs.have.iter().find(|wanted| !lines.any(|l| l.trim_end() == self.words.fill(wanted)));
        if let Some(missing) = missing {
            return Err(format!("the log lacks {missing:?}: {out:?} {err}"));
        }
        let found = logs.lack.iter().find(|l| out.contains(&self.words.fill(l)));
        found.map_or(Ok(()), |f| Err(format!("the log has {f:?}: {out:?}")))
    }

    /// Whether `kubectl` succeeded, and what it said; a complaint when it lost a part of a stream, see [`lost_output`].
    async fn whole(&self, args: &[String]) -> Result<(bool, String), String> {
        let (ok, out, err) = self.world.kubectl(&self.ns, args).await;
        if lost_output(&err) { Err(err) } else { Ok((ok, out + &err)) }
    }

    async fn exec(&self, exec: &Exec) -> Result<(), String> {
        let mut args = vec!["exec".to_owned(), "pod".into()];
        args.extend(exec.container.iter().flat_map(|c| ["-c".to_owned(), c.clone()]));
        args.extend(["--", "sh", "-c"].map(str::to_owned));
        args.push(self.words.fill(&exec.sh));
        let (_, out, err) = self.world.kubectl(&self.ns, &args).await;
        match out.trim() == self.words.fill(&exec.prints) {
            true => Ok(()),
            false => Err(format!("it printed {out:?} {err}")),
        }
    }

    async fn create(&self, object: Value) -> Result<(), String> {
        let object = adapt::adapt(object, self.scenario, &self.world.stage, &self.words, &self.node);
        let api = self.world.api(object["kind"].as_str().unwrap_or_default(), &self.ns);
        let object: kube::core::DynamicObject = serde_json::from_value(object).map_err(|e| e.to_string())?;
        let created = self.world.until(PATIENCE, async || objects::create(&api, &object).await).await?;
        created.map_err(|error| error.to_string())
    }

    async fn patch(&self, patch: &Patch) -> Result<(), String> {
        let mut with = patch.with.clone();
        self.words.fill_all(&mut with);
        let api = self.world.api(patch.kind.as_deref().unwrap_or("Pod"), &self.ns);
        let (name, params) = (patch.name.as_deref().unwrap_or("pod"), PatchParams::default());
        let with = kube::api::Patch::Strategic(with);
        let patched = match &patch.subresource {
            Some(subresource) => api.patch_subresource(subresource, name, &params, &with).await,
            None => api.patch(name, &params, &with).await,
        };
        patched.map(drop).map_err(|e| e.to_string())
    }

    async fn delete(&self, delete: &Delete) -> Result<(), String> {
        let api = self.world.api(delete.kind.as_deref().unwrap_or("Pod"), &self.ns);
        let params = DeleteParams { grace_period_seconds: delete.grace, ..DeleteParams::background() };
        let deleted = api.delete(delete.name.as_deref().unwrap_or("pod"), &params).await;
        deleted.map(drop).map_err(|e| e.to_string())
    }

    /// All that was seen.
    fn story(&self) -> String {
        let mut lines = Vec::new();
        for versions in self.world.pods(&self.ns, "*") {
            let mut last = String::new();
            for version in &versions {
                let line = version.as_ref().map_or("gone".into(), |pod| {
                    format!("{} {}", pod["metadata"]["name"].as_str().unwrap_or(""), expect::line(pod))
                });
                if line != last {
                    lines.push(format!("    {line}"));
                }
                last = line;
            }
        }
        for event in self.world.events(&self.ns) {
            lines.push(format!("    {}: {} (x{})", event.head, event.message, event.count));
        }
        lines.join("\n")
    }
}
