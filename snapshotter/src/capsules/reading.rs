//! Reading what is published: all of it when containerd is connected to, and one image after each event.

use std::collections::{BTreeSet, HashMap, HashSet};

use futures::{StreamExt, TryStreamExt, stream};
use tokio::task::spawn_blocking;

use super::{
    CapsuleError, Capsules,
    catalogue::{Catalogue, Published},
    claim::{Claim, is_aside, read_claim},
    model::Digest,
    oci::Image,
    told::{Key, Known, plan_told},
};
use crate::store::{attachments::Change, images};

/// How many images are read at once when all are.
const READERS: usize = 8;

impl Capsules {
    /// Reads what is published from containerd.
    pub async fn reload(&self) -> Result<(), CapsuleError> {
        let _reading = self.reading.lock().await;
        let scope = self.containerd.namespace(&self.namespace)?;
        let records = scope.images().await?;
        if !self.catalogue.is_listed() {
            self.clear_transits(&scope, &records).await?;
        }
        // Taken out one by one: nothing of it is in memory twice.
        let mut known = self.known_images().await;
        let digests: HashSet<Digest> = known.keys().cloned().collect();
        let read = records.into_iter().map(|record| {
            let known = record.digest.parse().ok().and_then(|digest: Digest| known.remove(&digest));
            let scope = scope.clone();
            async move { read_claim(&scope, &record, known.as_ref()).await }
        });
        let claims: Vec<_> = stream::iter(read).buffered(READERS).try_collect().await?;
        let all: Vec<Claim> = claims.into_iter().flatten().collect();
        self.learn(&digests, &all);
        let before = self.catalogue.is_listed().then(|| self.catalogue.known(&self.catalogue.keys()));
        self.catalogue.replace(all);
        if let Some(before) = before {
            self.tell(&before, &self.catalogue.known(&self.catalogue.keys()));
        }
        Ok(())
    }

    /// What images say that an earlier capsuled has read. What a digest stands for never changes.
    async fn known_images(&self) -> HashMap<Digest, Image> {
        let Some(store) = self.images.clone() else { return HashMap::new() };
        match spawn_blocking(move || images::read_all(&store)).await {
            Ok(Ok(known)) => known,
            Ok(Err(error)) => {
                tracing::warn!(%error, "what is known of images cannot be read: containerd is asked for all of it");
                HashMap::new()
            }
            Err(_) => HashMap::new(),
        }
    }

    /// Writes down what is new in `all`, and forgets what is not in it any more.
    fn learn(&self, known: &HashSet<Digest>, all: &[Claim]) {
        let there: HashSet<&Digest> = all.iter().map(|claim| &claim.version.digest).collect();
        let new = all.iter().map(|claim| &claim.version).filter(|version| !known.contains(&version.digest));
        let new = new.filter_map(learnt);
        let gone = known.iter().filter(|digest| !there.contains(digest));
        let changes: Vec<Change> =
            new.chain(gone.map(|digest| Change::Image(digest.clone(), None))).collect();
        if self.images.is_some() && !changes.is_empty() {
            self.journal.post(changes);
        }
    }

    /// Tells what came and what went.
    fn tell(&self, before: &Known, after: &Known) {
        let events = plan_told(before, after).into_iter();
        self.journal.post(events.map(|event| Change::Tell(Box::new(event))).collect());
    }

    /// The catalogue, read now if it has not been read since the start.
    ///
    /// # Errors
    /// containerd's, then only: a node whose capsules are unknown is not one without capsules.
    pub async fn listed(&self) -> Result<&Catalogue, CapsuleError> {
        if !self.catalogue.is_listed() {
            self.reload().await?;
        }
        Ok(&self.catalogue)
    }

    /// Reads one image again after an event.
    pub async fn refresh(&self, image_name: &str) -> Result<(), CapsuleError> {
        if is_aside(image_name) {
            self.forget_verified();
        }
        // What is read later is told later: an event and a call may be about the same image.
        let _reading = self.reading.lock().await;
        let scope = self.containerd.namespace(&self.namespace)?;
        let record = scope.image(image_name).await?;
        let claim = match &record {
            Some(record) => read_claim(&scope, record, None).await?,
            None => None,
        };
        if let (Some(claim), true) = (&claim, self.images.is_some()) {
            self.journal.post(learnt(&claim.version).into_iter().collect());
        }
        let came = claim.as_ref().map(|claim| (claim.version.name.clone(), claim.version.version.clone()));
        let touched = self.catalogue.keys_of(image_name);
        let touched: BTreeSet<Key> = touched.into_iter().chain(came).collect();
        let before = self.catalogue.known(&touched);
        self.catalogue.change(image_name, claim);
        self.tell(&before, &self.catalogue.known(&touched));
        Ok(())
    }
}

/// What is to be known of a version's image, if it could be read.
fn learnt(version: &Published) -> Option<Change> {
    let image = version.image.as_ref().ok()?;
    Some(Change::Image(version.digest.clone(), Some(Box::new(image.clone()))))
}
