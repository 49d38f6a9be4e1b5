//! The operator is killed at each of its writes, and nothing is lost, doubled or left behind.
//!
//! A small fleet lives a scripted [`life`]. Lived undisturbed, it tells which writes the operator makes of it: the
//! [`points`]. Then it is lived again for a point, on the same [`stage`]: the API server holds that one write up, right
//! before it takes effect or right after, the operator is killed (SIGKILL), so that the answer is lost, and another one
//! is started. Life goes on to its end, and what was [`seen`] of it must be as if nothing had happened.
//!
//! The same life is lived in [`storms`] too: the API server answers badly all the time, and nobody is killed.
//!
//! `cargo test` plays a sample of the points that follows from a seed. A failure names its point and the seed.
//!
//! | variable | meaning |
//! |---|---|
//! | `VNODE_SEED=7` | the sample of that seed |
//! | `VNODE_CRASHES=40`, `all` | the sample's size |
//! | `VNODE_CRASH='after PATCH /api/v1/nodes/proc-~'` | the points that have this in their names |
//! | `VNODE_STORM='watches are cut'` | the storms that have this in their names |
//! | `VNODE_CRASH=list` | none; their names are printed |

mod life;
mod points;
mod seen;
mod stage;
mod storms;

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Instant;

use points::Point;
use stage::Stage;

use crate::support::is_foreign;

/// The sample that is played unless another is asked for: a change is judged by what it changes, not by luck.
const SEED: u64 = 1;
/// How many points are played unless more are asked for.
const SAMPLE: usize = 8;
/// So many clusters play at the same time: a life is mostly spent waiting.
const STAGES: usize = 2;

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// How the operators watch pods, in turn.
const WATCHES: [&str; 2] = ["--pod-watch=shared", "--pod-watch=per-node"];

/// The points to play, and the seed that they follow from.
fn chosen(all: Vec<Point>) -> (Vec<Point>, u64) {
    let seed = variable("VNODE_SEED").map_or(SEED, |seed| seed.parse().expect("VNODE_SEED is a number"));
    if let Some(name) = variable("VNODE_CRASH") {
        return (all.into_iter().filter(|point| point.to_string().contains(&name)).collect(), seed);
    }
    let size = match variable("VNODE_CRASHES") {
        Some(word) if word == "all" => return (all, seed),
        Some(number) => number.parse().expect("VNODE_CRASHES is a number or all"),
        None => SAMPLE,
    };
    (points::sample(all, seed, size), seed)
}

/// Runs what is asynchronous of one stage.
fn on_stage<T>(play: impl AsyncFnOnce(&Stage) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async { play(&Stage::set().await).await })
}

#[test]
fn a_kill_at_any_write_loses_doubles_and_leaves_nothing() {
    if is_foreign("only the embedded cluster holds writes up") {
        return;
    }
    let begin = Instant::now();
    let all = on_stage(async |stage: &Stage| {
        stage.live("r", None, WATCHES[0]).await.unwrap_or_else(|why| panic!("undisturbed: {why}"));
        points::of(&stage.writes(), "r")
    });
    let (possible, took) = (all.len(), begin.elapsed());
    if variable("VNODE_CRASH").is_some_and(|name| name == "list") {
        return all.iter().for_each(|point| eprintln!("{point}"));
    }
    let (points, seed) = chosen(all);
    assert!(!points.is_empty(), "no such point");
    // A point that was asked for by name is played both ways.
    let both = if variable("VNODE_CRASH").is_some() { WATCHES.len() } else { 1 };
    let points = points.into_iter().flat_map(|point| std::iter::repeat_n(point, both)).enumerate();
    let points: VecDeque<_> = points.map(|(n, point)| (n, point, WATCHES[n % WATCHES.len()])).collect();
    let (count, queue) = (points.len(), Mutex::new(points));
    let (missed, failed) = (Mutex::new(0), Mutex::new(Vec::new()));
    let next = || queue.lock().expect("no panic").pop_front();
    let play = async |stage: &Stage| {
        while let Some((n, point, watch)) = next() {
            let start = Instant::now();
            match stage.live(&format!("c{n}"), Some(&point), watch).await {
                Ok(true) => eprintln!("    {:5.1?} {point}", start.elapsed()),
                // Writes of a status are put together as they come; this one was not needed.
                Ok(false) => {
                    eprintln!("    {:5.1?} {point}: did not happen", start.elapsed());
                    *missed.lock().expect("no panic") += 1;
                }
                Err(why) => {
                    eprintln!("--- {:5.1?} {point} ({watch}): {why}", start.elapsed());
                    let (writes, log) = (stage.writes().join("\n"), stage.log());
                    let told = format!("--- {point} ({watch}): {why}\n{log}\nwith these writes beside it:\n{writes}");
                    failed.lock().expect("no panic").push(told);
                }
            }
        }
    };
    std::thread::scope(|threads| {
        for _ in 0..STAGES.min(count) {
            threads.spawn(|| on_stage(play));
        }
    });
    let (failed, missed) = (failed.into_inner().expect("no panic"), missed.into_inner().expect("no panic"));
    eprintln!(
        "{count} of {possible} points (seed {seed}) took {:.1?}, {took:.1?} of it undisturbed; {missed} did not happen",
        begin.elapsed()
    );
    assert!(
        failed.is_empty(),
        "{} of {count} points failed (VNODE_SEED={seed}, or VNODE_CRASH='the point'):\n{}",
        failed.len(),
        failed.join("\n")
    );
    assert!(missed * 2 <= count, "{missed} of {count} points were not met: nothing is tested");
}

#[test]
fn no_storm_of_the_api_server_loses_doubles_or_leaves_anything() {
    if is_foreign("only the embedded cluster has faults on demand") {
        return;
    }
    let wanted = variable("VNODE_STORM").unwrap_or_default();
    let storms: VecDeque<_> = storms::all().into_iter().filter(|s| s.name.contains(&wanted)).enumerate().collect();
    assert!(!storms.is_empty(), "no such storm");
    let (queue, failed) = (Mutex::new(storms), Mutex::new(Vec::new()));
    let next = || queue.lock().expect("no panic").pop_front();
    let play = async |stage: &Stage| {
        while let Some((n, storm)) = next() {
            let (start, watch) = (Instant::now(), WATCHES[n % WATCHES.len()]);
            let lived = stage.live_in(&format!("s{n}"), &storm, watch).await;
            eprintln!(
                "    {:5.1?} {}: {}",
                start.elapsed(),
                storm.name,
                if lived.is_ok() { "lived" } else { "FAILED" }
            );
            if let Err(why) = lived {
                failed.lock().expect("no panic").push(format!("--- {} ({watch}): {why}\n{}", storm.name, stage.log()));
            }
        }
    };
    std::thread::scope(|threads| {
        for _ in 0..STAGES {
            threads.spawn(|| on_stage(play));
        }
    });
    let failed = failed.into_inner().expect("no panic");
    assert!(failed.is_empty(), "{} storms were not weathered:\n{}", failed.len(), failed.join("\n"));
}
