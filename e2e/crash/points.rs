//! The operator's writes, named so that a later life has the same ones.

use std::collections::BTreeMap;
use std::fmt;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

/// One of the operator's writes, and a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// `PATCH` and the like.
    pub method: String,
    /// With `~` for the name of a life, and `*` for what is random.
    pub path: String,
    /// Which one of that method and path, from 0.
    pub nth: usize,
    /// Right after it took effect; otherwise right before.
    pub after: bool,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = if self.after { "after" } else { "before" };
        write!(f, "{moment} {} {} #{}", self.method, self.path, self.nth + 1)
    }
}

impl Point {
    /// The pattern of paths of this point in a life of that name.
    pub fn pattern(&self, life: &str) -> String {
        // With a star it is a pattern for all of the path, and not for its beginning.
        format!("*{}", self.path.trim_start_matches('/').replace('~', life))
    }
}

/// What asks, or tells of what was done: nothing that a later process finds there.
fn is_noise(path: &str) -> bool {
    path.ends_with("reviews") || path.ends_with("/events") || path.contains("/events/") || path.ends_with("/token")
}

/// The points of a life, as its writes were recorded.
pub fn of(recorded: &[String], life: &str) -> Vec<Point> {
    let mut seen = BTreeMap::<(String, String), usize>::new();
    let mut points = Vec::new();
    for write in recorded {
        let Some((method, path)) = write.split_once(' ') else { continue };
        let path = generalized(path, life);
        if is_noise(&path) {
            continue;
        }
        let count = seen.entry((method.to_owned(), path.clone())).or_default();
        let nth = *count;
        *count += 1;
        // The first creates or takes it, and the second renews it. All that follow are the same at another time.
        if path.contains("/leases/") && nth > 0 {
            continue;
        }
        let (method, path) = (method.to_owned(), path);
        points.extend([false, true].map(|after| Point { method: method.clone(), path: path.clone(), nth, after }));
    }
    points
}

fn generalized(path: &str, life: &str) -> String {
    let words = path.split('/').map(|segment| {
        let parts: Vec<_> = segment.split('-').map(|part| if part == life { "~" } else { part }).collect();
        parts.join("-")
    });
    let words: Vec<_> = words.collect();
    match words.iter().position(|word| word == "certificatesigningrequests") {
        Some(at) if words.len() > at + 1 => {
            let mut words = words;
            words[at + 1] = "*".into();
            words.join("/")
        }
        _ => words.join("/"),
    }
}

/// So many of them, the same for the same seed.
pub fn sample(mut points: Vec<Point>, seed: u64, size: usize) -> Vec<Point> {
    points.shuffle(&mut StdRng::seed_from_u64(seed));
    points.truncate(size);
    points
}

#[test]
fn writes_are_told_apart_and_found_again_in_another_life() {
    let recorded = [
        "POST /apis/authorization.k8s.io/v1/subjectaccessreviews",
        "PATCH /api/v1/nodes/proc-r",
        "PATCH /api/v1/nodes/proc-r/status",
        "PATCH /api/v1/nodes/proc-r",
        "PUT /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/set-r-0",
        "PUT /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/set-r-0",
    ];
    let points = of(&recorded.map(str::to_owned), "r");
    let names: Vec<_> = points.iter().filter(|p| p.after).map(ToString::to_string).collect();
    assert_eq!(
        names,
        [
            "after PATCH /api/v1/nodes/proc-~ #1",
            "after PATCH /api/v1/nodes/proc-~/status #1",
            "after PATCH /api/v1/nodes/proc-~ #2",
            "after PUT /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/set-~-0 #1",
        ]
    );
    assert_eq!(points.len(), 8);
    assert_eq!(points[0].pattern("c7"), "*api/v1/nodes/proc-c7");
    assert_eq!(sample(points.clone(), 3, 4), sample(points.clone(), 3, 4));
    assert_ne!(sample(points.clone(), 3, 8), sample(points, 4, 8));
}
