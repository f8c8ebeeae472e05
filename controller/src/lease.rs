//! One of several at a time: a `Lease` (coordination.k8s.io/v1), held as client-go's `leaderelection` holds it.
//!
//! Whose it is is told by the lease's own changes as they are seen here, and by this machine's clock alone: two machines may differ in what
//! time it is. kube-leader-election 0.44 compares with the other's clock, and takes a lease over without looking whether another has.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::time::sleep;

use crate::{bounded, meters::Meters};

/// How long others wait for one that does not renew it.
const DURATION: Duration = Duration::from_secs(15);
/// How long one that holds it goes on without having renewed it: it has ended before another begins.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often it is tried.
const RETRY: Duration = Duration::from_secs(2);

/// Of whom there is one at a time.
#[derive(Debug)]
pub struct Election {
    api: Api<Lease>,
    name: String,
    identity: String,
    /// The lease's state that was seen last, and since when.
    seen: Option<(String, Instant)>,
    meters: Meters,
}

/// What a look at the lease leads to.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// There is none.
    Create,
    /// It is ours, or nobody's, or its holder has not renewed it in time.
    Hold,
    /// It is another's.
    Wait,
}

impl Election {
    /// By the lease `name` of the client's own namespace, as `identity`, which no other may have.
    pub fn new(client: Client, name: &str, identity: String, meters: Meters) -> Self {
        Self { api: Api::default_namespaced(client), name: name.to_owned(), identity, seen: None, meters }
    }

    /// Waits until it is ours, then works, and lets it go: when the work ends, when it is lost, or when `ended` says so.
    ///
    /// # Errors
    /// The work's; that the lease could not be renewed.
    pub async fn lead(
        mut self,
        work: impl Future<Output = anyhow::Result<()>> + Send + 'static,
        ended: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        let mut ended = pin!(ended);
        tokio::select! {
            () = self.win() => {}
            () = &mut ended => return Ok(()),
        }
        tracing::info!(identity = self.identity, "this one leads");
        self.meters.leads(true);
        self.meters.turned();
        // In a task of its own: whatever the work does, the lease is renewed, or given up.
        let mut work = tokio::spawn(work);
        let outcome = tokio::select! {
            outcome = &mut work => outcome.unwrap_or_else(|error| Err(error.into())),
            () = self.keep() => Err(anyhow::anyhow!("the lease {} could not be renewed in {DEADLINE:?}", self.name)),
            () = &mut ended => Ok(()),
        };
        work.abort();
        self.meters.leads(false);
        if let Err(error) = self.attempt(true).await {
            tracing::warn!(%error, "the lease is not let go: another takes it when its time is over");
        }
        outcome
    }

    async fn win(&mut self) {
        loop {
            let won = self.attempt(false).await;
            self.meters.turned();
            self.meters.set_ready(won.is_ok());
            match won {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "the lease"),
            }
            sleep(RETRY).await;
        }
    }

    /// Returns when it is lost, or may be.
    async fn keep(&mut self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < DEADLINE {
            sleep(RETRY).await;
            let asked = Instant::now();
            match tokio::time::timeout(DEADLINE.saturating_sub(renewed.elapsed()), self.attempt(false)).await
            {
                Ok(Ok(true)) => renewed = asked,
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::warn!(%error, "the lease is not renewed"),
                Err(_) => return,
            }
        }
    }

    /// Takes it, renews it, or lets it go, if it is ours to do so. Whether it has.
    async fn attempt(&mut self, lets_go: bool) -> Result<bool, kube::Error> {
        let lease = bounded(self.api.get_opt(&self.name)).await?;
        let is_stale = self.is_stale(lease.as_ref());
        let spec = lease.as_ref().and_then(|lease| lease.spec.as_ref());
        let next = next(lease.is_some(), spec, &self.identity, is_stale && !lets_go);
        let holder = if lets_go { "" } else { &self.identity };
        let renewed = renewed(spec.cloned().unwrap_or_default(), holder, Timestamp::now());
        let params = PostParams::default();
        let written = match (next, lease) {
            (Next::Wait, _) => return Ok(false),
            // There is nothing to let go.
            (Next::Create, _) if lets_go => return Ok(false),
            (Next::Create, _) => {
                let mut lease = Lease { spec: Some(renewed), ..Lease::default() };
                lease.metadata.name = Some(self.name.clone());
                bounded(self.api.create(&params, &lease)).await
            }
            // Of this very state: another may have taken it since.
            (Next::Hold, lease) => {
                let lease = Lease { spec: Some(renewed), ..lease.unwrap_or_default() };
                bounded(self.api.replace(&self.name, &params, &lease)).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(error)) if error.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether it is as it was for longer than its holder may take.
    fn is_stale(&mut self, lease: Option<&Lease>) -> bool {
        let state = lease.and_then(|lease| lease.metadata.resource_version.clone()).unwrap_or_default();
        match &self.seen {
            Some((seen, since)) if *seen == state => since.elapsed() > duration(lease),
            _ => {
                self.seen = Some((state, Instant::now()));
                false
            }
        }
    }
}

fn duration(lease: Option<&Lease>) -> Duration {
    let seconds = lease.and_then(|lease| lease.spec.as_ref()?.lease_duration_seconds);
    seconds.and_then(|seconds| u64::try_from(seconds).ok()).map_or(DURATION, Duration::from_secs)
}

fn next(is_there: bool, spec: Option<&LeaseSpec>, identity: &str, is_stale: bool) -> Next {
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
    match holder {
        _ if !is_there => Next::Create,
        holder if holder.is_empty() || holder == identity || is_stale => Next::Hold,
        _ => Next::Wait,
    }
}

/// It, renewed by `holder`, or nobody's.
fn renewed(before: LeaseSpec, holder: &str, now: Timestamp) -> LeaseSpec {
    let is_same = before.holder_identity.as_deref() == Some(holder);
    let now = Some(MicroTime(now));
    LeaseSpec {
        holder_identity: Some(holder.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        renew_time: now.clone(),
        acquire_time: if is_same { before.acquire_time.clone().or(now) } else { now },
        lease_transitions: Some(
            before.lease_transitions.unwrap_or(-1) + i32::from(!is_same && !holder.is_empty()),
        ),
        ..before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(by: &str) -> LeaseSpec {
        renewed(LeaseSpec::default(), by, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn it_is_taken_from_nobody_who_renews_it() {
        assert_eq!(next(false, None, "a", false), Next::Create);
        assert_eq!(next(true, None, "a", false), Next::Hold);
        assert_eq!(next(true, Some(&held("")), "a", false), Next::Hold);
        assert_eq!(next(true, Some(&held("a")), "a", false), Next::Hold);
        assert_eq!(next(true, Some(&held("b")), "a", false), Next::Wait);
        assert_eq!(next(true, Some(&held("b")), "a", true), Next::Hold);
    }

    #[test]
    fn a_lease_tells_since_when_and_how_often_it_changed_hands() {
        let later = Timestamp::from_second(9).unwrap();
        let first = held("a");
        assert_eq!(first.lease_transitions, Some(0));
        let second = renewed(first.clone(), "a", later);
        assert_eq!((second.lease_transitions, &second.acquire_time), (Some(0), &first.acquire_time));
        assert_eq!(second.renew_time, Some(MicroTime(later)));
        let let_go = renewed(second, "", later);
        assert_eq!((let_go.lease_transitions, let_go.holder_identity.as_deref()), (Some(0), Some("")));
        assert_eq!(renewed(let_go, "b", later).lease_transitions, Some(1));
    }
}
