//! All containers of a pod once more: what the restart rule `RestartAllContainers` asks for. KEP-5532.
//!
//! The sandbox, its addresses and the volumes stay. Containers are killed without being asked, hooks do not run, and
//! then the pod begins with its first init container. Only the container whose end it was is backed off from, which
//! keeps a pod from doing nothing else.

use std::time::Duration;

use jiff::Timestamp;

use super::plan::Group;
use super::state::Stage;
use super::{Action, Machine};

impl Machine {
    /// True when it went a step.
    pub(super) fn renew(&mut self, now: Timestamp, out: &mut Vec<Action>) -> bool {
        let (mut changed, mut busy) = (false, false);
        for c in 0..self.state.containers.len() {
            let run = &mut self.state.containers[c];
            match run.stage {
                Stage::Pulling => (run.stage, changed) = (Stage::waiting(), true),
                Stage::Starting => busy = true,
                _ if run.is_alive() => {
                    busy = true;
                    if run.ending.is_none() {
                        let said = format!("Container {} will be restarted with all containers of the pod", run.name);
                        self.begin_end(c, Duration::ZERO, Some(said), now, out);
                        changed = true;
                    }
                }
                _ => {}
            }
        }
        if busy {
            return changed;
        }
        for (plan, run) in self.plan.containers.iter().zip(&mut self.state.containers) {
            if plan.group == Group::Ephemeral {
                continue;
            }
            run.passed = false;
            // The one whose end it was takes the way of any end.
            if let Stage::Exited(end) = &run.stage
                && !run.renewed
            {
                run.last = Some(end.clone());
                run.stage = Stage::waiting();
            }
        }
        self.state.renewing = false;
        true
    }
}
