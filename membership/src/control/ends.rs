//! How an incarnation ends, and what follows it: another one, or nothing.

use membership_proto::{Cluster, End, Forced, Input, WhyNot};
use membership_sync::NodeLease;
use membership_types::{Instant, Rng, ViewId};
use tokio::time::timeout;

use super::{Driver, FAREWELL};
use crate::{clock, error::StartError, event::What, panic::Guarded, start};

impl Driver {
    /// The machine's life is over: tells so, and begins another one unless the node is to stop.
    pub(super) fn incarnation_over(&mut self, end: End) {
        let highest = self.machine.highest();
        self.lease.revoke();
        self.lease_until = self.lease_until.min(clock::now());
        self.suspend_leading(WhyNot::Removed, self.lease_until);
        self.view = None;
        if let Some(neighbours) = self.transport.neighbours() {
            neighbours.out_of_view();
        }
        self.blocked = None;
        self.own_state.retain(|e| matches!(e.what, What::Started { .. }));
        let leaves = self.stopping.is_some();
        self.count_blocked();
        self.blocked_since = None;
        self.leased = None;
        let goes_over = matches!(end, End::Dissolved { .. });
        let cause = match &end {
            End::Left => "leave",
            End::Removed { .. } => "removed",
            End::Dissolved { .. } => "merge",
            End::StartOver { .. } => "start_over",
            End::Forced(_) => "force",
        };
        self.counts.ended.get_or_create(&[("cause", cause)]).inc();
        let mut by_force = None;
        let why = match end {
            End::Left if self.revoked && !leaves => {
                let why = "a panic in this process ended its lease";
                self.say(What::StartOver { why: why.to_owned() });
                why
            }
            End::Left => "left",
            End::Removed { view, why } => {
                tracing::warn!(%view, why, "removed from the cluster");
                self.say(What::Removed { view, why: why.to_owned() });
                "removed"
            }
            End::Dissolved { into } => {
                let lost = self.memberships();
                tracing::warn!(%into, "the cluster dissolved into another one: what it acknowledged in {lost:?} is lost");
                self.say(What::Dissolved { into, lost });
                "its cluster dissolved"
            }
            End::Forced(forced) => {
                let into = forced.lineage;
                let from = forced.supersedes.first().map(ToString::to_string);
                tracing::error!(%into, from, above = %forced.highest, "an operator forced a new lineage from this node");
                self.say(What::Dissolved { into, lost: self.memberships() });
                by_force = Some(forced);
                "an operator forced a new lineage"
            }
            End::StartOver { why } => {
                if self.stopping.is_none() {
                    tracing::warn!(why, "the node begins anew");
                }
                self.say(What::StartOver { why: why.to_owned() });
                why
            }
        };
        self.groups_over();
        if let Some(tracer) = &self.tracer {
            tracer.end();
        }
        if leaves || !self.rejoin && by_force.is_none() {
            self.over = Some(why.to_owned());
        } else if let Err(error) = self.begin_again(highest, by_force, goes_over) {
            tracing::error!(%error, "the node cannot begin anew");
            self.over = Some(format!("cannot begin anew: {error}"));
        }
    }

    /// A fresh incarnation, with the wishes of the last one.
    fn begin_again(
        &mut self,
        highest: ViewId,
        forced: Option<Forced>,
        goes_over: bool,
    ) -> Result<(), StartError> {
        let id = start::fresh_id(&self.config.me.name)?;
        self.lease = NodeLease::new()?;
        self._guarded = self.guard.then(|| Guarded::new(self.lease.clone()));
        self.lease_until = Instant::ZERO;
        self.revoked = false;
        self.config.me.id = id;
        self.transport.renew(id);
        self.steering.set_id(id);
        self.steering.set_seeking(true);
        self.inputs.clear();
        let rng = Rng::seeded(self.rng.next_u64());
        let mut fresh =
            Cluster::new(self.config.clone(), clock::now(), rng, highest).with_floor_of(&self.machine);
        if goes_over {
            fresh.goes_over();
        }
        let lineage = forced.as_ref().map(|forced| forced.lineage);
        self.machine = match forced {
            Some(forced) => fresh.with_forced(forced),
            None => fresh,
        };
        self.begun();
        self.bulk.begin(self.transport.hello(), self.lease.clone());
        let (addresses, complete) = self.addresses.clone();
        self.inputs.push_back(Input::Rendezvous { addresses, complete });
        self.wish_again();
        if let Some(lineage) = lineage {
            self.forced(Ok(lineage));
        }
        Ok(())
    }

    pub(super) async fn finish(mut self) {
        let why = self.over.take().unwrap_or_default();
        // Whatever else is told or written: nothing is done under a lease any more.
        self.lease.revoke();
        self.lease_until = self.lease_until.min(clock::now());
        self.suspend_leading(WhyNot::Leave, self.lease_until);
        self.groups_over();
        self.say(What::Ended { why });
        // At once, but neither waits for the other, or for a file server that does not answer.
        let _in_time = timeout(FAREWELL, self.steering.withdraw()).await;
        self.transport.shutdown(FAREWELL).await;
        self.bulk.stop().await;
        if let Some(tracer) = self.tracer.take() {
            tracer.finish();
        }
    }
}
