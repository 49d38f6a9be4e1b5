//! CronJobs: a Job at each time that the schedule names.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};

use super::informer::{Key, key_of};
use super::job::{ended, finished};
use super::queue::{Outcome, Queue};
use super::workload::owned_by;
use super::world::{World, controller_of, gone_is_fine, there_is_fine};
use crate::validate::schedule::{self, Schedule};

const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
const BY: &str = "cronjob-controller";

/// Hooks the controller to the shared watches and returns its work.
pub(crate) fn start(world: &Arc<World>) -> impl Future<Output = ()> + Send + use<> {
    let queue: Arc<Queue<Key>> = Queue::new();
    let q = queue.clone();
    world.cron_jobs.on_change(move |change| {
        if let Some(cron) = change.new {
            q.add(key_of(cron.as_ref()));
        }
    });
    let q = queue.clone();
    world.jobs.on_change(move |change| {
        for job in change.old.into_iter().chain(change.new) {
            if let Some(owner) = controller_of(job.as_ref()).filter(|o| o.kind == "CronJob") {
                q.add((job.namespace().unwrap_or_default(), owner.name.clone()));
            }
        }
    });
    let world = world.clone();
    async move {
        world.cron_jobs.synced().await;
        world.jobs.synced().await;
        queue.work("cron-job", 8, |key| reconcile(&world, key)).await;
    }
}

/// The time that is due, if any, and the next one. Of several missed times only the last is due.
fn due(
    schedule: &Schedule,
    zone: &TimeZone,
    since: Timestamp,
    now: Timestamp,
) -> (Option<Timestamp>, Option<Timestamp>) {
    let schedule = match schedule {
        Schedule::Fields(fields) => fields,
        Schedule::Every(length) => {
            let (length, passed) = (length.as_secs(), now.as_second() - since.as_second());
            let times = passed.div_euclid(length).max(0);
            let at = |times: i64| Timestamp::from_second(since.as_second() + times * length).ok();
            return (at(times).filter(|_| times > 0), at(times + 1));
        }
    };
    let next = |at: Timestamp| {
        let next = schedule.find_next_occurrence(&at.to_zoned(zone.clone()), false).ok()?;
        Some(next.timestamp())
    };
    let last = schedule.find_previous_occurrence(&now.to_zoned(zone.clone()), true).ok().map(|z| z.timestamp());
    (last.filter(|last| *last > since), next(now))
}

/// The Job for a time. Its name holds the minute, so that no time has two.
fn job_at(cron: &CronJob, at: Timestamp) -> Job {
    let template = cron.spec.job_template.clone();
    let meta = template.metadata.unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED.into(), at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", cron.name_any(), at.as_second() / 60)),
            namespace: cron.namespace(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owned_by(cron)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

fn reference(job: &Job) -> Value {
    json!({"apiVersion": "batch/v1", "kind": "Job", "namespace": job.namespace(), "name": job.name_any(),
        "uid": job.uid(), "resourceVersion": job.resource_version()})
}

/// Deletes finished Jobs that are more than the history may hold, the oldest first.
async fn forget(world: &World, cron: &CronJob, mut done: Vec<Arc<Job>>, keep: i32) -> Result<(), kube::Error> {
    done.sort_by_key(|job| (job.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0), job.name_any()));
    let surplus = done.len().saturating_sub(usize::try_from(keep).unwrap_or_default());
    let api = world.api::<Job>(&cron.namespace().unwrap_or_default());
    for job in done.iter().take(surplus) {
        gone_is_fine(api.delete(&job.name_any(), &DeleteParams::background()).await.map(drop))?;
        let said = format!("Deleted job {}", job.name_any());
        world.event(BY, cron, "Normal", "SuccessfulDelete", &said);
    }
    Ok(())
}

async fn reconcile(world: &World, key: Key) -> Outcome {
    let Some(cron) = world.cron_jobs.get(&key) else { return Ok(None) };
    if cron.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let (uid, spec, now) = (cron.uid().unwrap_or_default(), &cron.spec, Timestamp::now());
    let jobs = world.jobs.select(|job| controller_of(job).is_some_and(|o| o.uid == uid));
    let (done, mut active): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| finished(job).is_some());
    active.retain(|job| job.metadata.deletion_timestamp.is_none());
    let status = cron.status.clone().unwrap_or_default();
    let succeeded = |job: &Arc<Job>| ended(job, "Complete");
    let completed = done.iter().filter_map(|job| job.status.as_ref()?.completion_time.as_ref().map(|t| t.0)).max();
    let (good, bad): (Vec<_>, Vec<_>) = done.into_iter().partition(succeeded);
    forget(world, &cron, good, spec.successful_jobs_history_limit.unwrap_or(3)).await?;
    forget(world, &cron, bad, spec.failed_jobs_history_limit.unwrap_or(1)).await?;
    let mut references: Vec<_> = active.iter().map(|job| reference(job)).collect();
    let mut scheduled = status.last_schedule_time.as_ref().map(|t| t.0);
    let mut wait = None;
    if spec.suspend != Some(true)
        && let Ok(plan) = schedule::parse(&spec.schedule)
        && let Ok(zone) = schedule::zone(spec.time_zone.as_deref())
    {
        let born = cron.creation_timestamp().map_or(now, |t| t.0);
        let (at, next) = due(&plan, &zone, scheduled.unwrap_or(born), now);
        wait = next.map(|next| {
            Duration::from_millis((next.as_millisecond() - now.as_millisecond()).max(0).unsigned_abs() + 10)
        });
        let late = |at: Timestamp| spec.starting_deadline_seconds.is_some_and(|d| now.as_second() - at.as_second() > d);
        match at {
            None => {}
            Some(at) if late(at) => {
                let said = format!("Missed scheduled time to start a job: {at}");
                world.event(BY, cron.as_ref(), "Warning", "MissSchedule", &said);
                scheduled = Some(at);
            }
            Some(_) if spec.concurrency_policy.as_deref() == Some("Forbid") && !active.is_empty() => {
                let said = "Not starting job because prior execution is running and concurrency policy is Forbid";
                world.event(BY, cron.as_ref(), "Normal", "JobAlreadyActive", said);
            }
            Some(at) => {
                let api = world.api::<Job>(&key.0);
                if spec.concurrency_policy.as_deref() == Some("Replace") {
                    for job in &active {
                        gone_is_fine(api.delete(&job.name_any(), &DeleteParams::background()).await.map(drop))?;
                    }
                    references.clear();
                }
                let job = job_at(&cron, at);
                match api.create(&PostParams::default(), &job).await {
                    Ok(job) => {
                        references.push(reference(&job));
                        let said = format!("Created job {}", job.name_any());
                        world.event(BY, cron.as_ref(), "Normal", "SuccessfulCreate", &said);
                    }
                    Err(error) => there_is_fine(Err(error))?,
                }
                scheduled = Some(at);
            }
        }
    }
    let shown = |at: Timestamp| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut want = json!({"active": references});
    if references.is_empty() {
        want["active"] = Value::Null;
    }
    if let Some(at) = scheduled {
        want["lastScheduleTime"] = shown(at).into();
    }
    if let Some(at) = completed.max(status.last_successful_time.as_ref().map(|t| t.0)) {
        want["lastSuccessfulTime"] = shown(at).into();
    }
    let have = serde_json::to_value(&cron.status).unwrap_or_default();
    // The versions of active Jobs move with each of their changes, which says nothing new.
    let names =
        |v: &Value| -> Vec<Value> { v["active"].as_array().into_iter().flatten().map(|j| j["uid"].clone()).collect() };
    let same = |field: &str| have.get(field).unwrap_or(&Value::Null) == want.get(field).unwrap_or(&Value::Null);
    if names(&have) != names(&want) || !same("lastScheduleTime") || !same("lastSuccessfulTime") {
        world.write_status::<CronJob>(&key, &cron.status, want).await?;
    }
    Ok(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_counts_from_the_last_time() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let plan = schedule::parse("@every 1h30m").unwrap();
        for (now, want, next) in [
            ("2026-01-01T01:00:00Z", None, "2026-01-01T01:30:00Z"),
            ("2026-01-01T04:00:00Z", Some("2026-01-01T03:00:00Z"), "2026-01-01T04:30:00Z"),
        ] {
            let found = due(&plan, &TimeZone::UTC, at("2026-01-01T00:00:00Z"), at(now));
            assert_eq!(found, (want.map(at), Some(at(next))), "{now}");
        }
        assert!(schedule::parse("@every soon").unwrap_err().ends_with("invalid duration \"soon\""));
    }

    #[test]
    fn of_the_times_that_were_missed_only_the_last_is_due() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let plan = schedule::parse("*/5 * * * *").unwrap();
        for (since, now, want, next) in [
            ("2026-01-01T00:01:00Z", "2026-01-01T00:04:00Z", None, "2026-01-01T00:05:00Z"),
            ("2026-01-01T00:01:00Z", "2026-01-01T00:05:00Z", Some("2026-01-01T00:05:00Z"), "2026-01-01T00:10:00Z"),
            ("2026-01-01T00:05:00Z", "2026-01-01T00:05:01Z", None, "2026-01-01T00:10:00Z"),
            ("2026-01-01T00:01:00Z", "2026-01-01T01:02:00Z", Some("2026-01-01T01:00:00Z"), "2026-01-01T01:05:00Z"),
        ] {
            assert_eq!(due(&plan, &TimeZone::UTC, at(since), at(now)), (want.map(at), Some(at(next))), "{now}");
        }
    }
}
