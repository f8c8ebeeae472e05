//! The upper directories of this node: made, claimed, read, kept and removed.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};

use super::{
    UpperError,
    disk::{Disk, Retired},
    model::{About, FORMAT, Fate, Over, Upper, UpperName},
    reading::Reading,
    uses::{Key, Taken, Uses},
};
use crate::{
    attachments::model::{Attachment, ContainerKey, Phase},
    capsules::Resolved,
    fresh_id,
    volumes::model::VolumeId,
};

/// How long to wait for what is just being renamed away.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is asked for of what is to be written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Under which name; none for what is to go with the attachment.
    pub name: Option<UpperName>,
    /// How many bytes it is to hold; what has a name is of a fixed size always.
    pub size: Option<u64>,
}

/// One that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The name.
    pub name: UpperName,
    /// What is known of it; none when that is damaged.
    pub about: Option<About>,
    /// The attachment that has it now; draining ones count.
    pub used_by: Option<String>,
}

/// Cheap to clone, shared.
#[derive(Debug, Clone)]
pub struct Uppers {
    pub(super) disk: Disk,
    /// How many bytes what has a name holds unless told otherwise.
    pub(super) size: u64,
    uses: Arc<Mutex<Uses>>,
}

impl Uppers {
    /// Those below `root`, of which the attachments on record have some. What belongs to none may drain.
    ///
    /// # Errors
    /// [`UpperError::Disk`].
    pub fn open(root: &Path, size: u64, recorded: &BTreeMap<String, Attachment>) -> Result<Self, UpperError> {
        let disk = Disk::open(root)?;
        let left: Vec<_> = disk.leftovers()?.into_iter().map(Ok).collect();
        in_background(left.is_empty(), move || remove_all(left));
        let mut uses = Uses::default();
        for attachment in recorded.values() {
            if let Some(key) = key(attachment)
                && let Err(other) = uses.claim(key, &attachment.id, &attachment.container)
            {
                tracing::error!(attachment = attachment.id, ?other, "two attachments have what one writes");
            }
            // A detach that was broken off gives it this name yet, or is undone.
            if let Some(name) = kept_as(attachment) {
                _ = uses.claim(Key::Named(name.clone()), &attachment.id, &attachment.container);
            }
        }
        for key in disk.list()? {
            let (attachment, pending) = match &key {
                Key::Own(id) => (id.clone(), false),
                // Nobody's that could drain: see `volumes`.
                Key::Volume(_) => continue,
                Key::Named(_) => disk.about(&key).map(|a| (a.attachment, a.pending)).unwrap_or_default(),
            };
            uses.find(key, attachment, pending);
        }
        Ok(Self { disk, size, uses: Arc::new(Mutex::new(uses)) })
    }

    /// The root that all of it is below.
    pub fn root(&self) -> &Path {
        self.disk.root()
    }

    pub(super) fn path(&self, key: &Key) -> PathBuf {
        self.disk.path(key)
    }

    pub(super) fn uses(&self) -> MutexGuard<'_, Uses> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what an attachment is to write to, or takes what has the name: nobody else has it until the attachment
    /// has ended and does not drain. Blocks for as long as a file system takes to be made.
    ///
    /// # Errors
    /// [`UpperError`]; then nobody has it who had not before.
    pub fn claim(
        &self,
        wanted: &Wanted,
        id: &str,
        container: &ContainerKey,
        version: &Resolved,
    ) -> Result<Upper, UpperError> {
        let key = wanted.name.clone().map_or_else(|| Key::Own(id.to_owned()), Key::Named);
        let claimed = once_removed(|| self.uses().claim(key.clone(), id, container));
        if let (Err(taken), Key::Named(name)) = (claimed, &key) {
            return Err(refused(name, taken));
        }
        let claimed = self.prepare(&key, wanted, id, version);
        if claimed.is_err() {
            self.uses().release(&key, id);
        }
        claimed
    }

    fn prepare(&self, key: &Key, wanted: &Wanted, id: &str, version: &Resolved) -> Result<Upper, UpperError> {
        let mut about = About {
            format: FORMAT,
            over: Some(version.into()),
            attachment: id.to_owned(),
            limit: wanted.size.or(wanted.name.as_ref().map(|_| self.size)),
            since: SystemTime::now(),
            pending: wanted.name.is_some(),
            owner: None,
            permissions: None,
            ephemeral: false,
        };
        let fresh = !self.disk.has(key);
        match &wanted.name {
            Some(name) if !fresh => {
                let there = self.disk.about(key)?;
                check(name, &there, version, wanted.size)?;
                about.limit = there.limit;
            }
            _ => self.disk.make(key, &about)?,
        }
        Ok(Upper { name: wanted.name.clone(), place: self.disk.place(key), limit: about.limit, fresh })
    }

    /// Writes down over which version what has a name is mounted, for those who go on from what was written. What was said
    /// before stands until an attachment is there: one that fails changes nothing.
    ///
    /// # Errors
    /// [`UpperError`]; then that stands on.
    pub fn mounted(&self, attachment: &Attachment) -> Result<(), UpperError> {
        let Some(Upper { name: Some(name), .. }) = &attachment.upper else { return Ok(()) };
        let (key, current) = (Key::Named(name.clone()), &attachment.current);
        let before = self.disk.about(&key)?;
        let over = Over {
            capsule: attachment.capsule.clone(),
            version: current.version.clone(),
            digest: current.digest.clone(),
        };
        let now =
            About { over: Some(over), attachment: attachment.id.clone(), pending: false, ..before.clone() };
        if now == before { Ok(()) } else { self.disk.tell(&key, &now) }
    }

    /// Sees to it that nothing else takes a name under which what an attachment has written is to be kept.
    ///
    /// # Errors
    /// [`UpperError::Exists`].
    pub fn reserve(&self, name: &UpperName, attachment: &Attachment) -> Result<(), UpperError> {
        let key = Key::Named(name.clone());
        let claim = || self.uses().claim(key.clone(), &attachment.id, &attachment.container);
        let claimed = once_removed(claim);
        if claimed.is_err() || self.disk.has(&key) {
            self.uses().release(&key, &attachment.id);
            return Err(UpperError::Exists(name.clone()));
        }
        Ok(())
    }

    /// Gives a name back that an attachment has reserved.
    pub fn release(&self, name: &UpperName, attachment: &str) {
        self.uses().release(&Key::Named(name.clone()), attachment);
    }

    /// Keeps under a name what an attachment has written, which goes with it otherwise. Durable when this returns;
    /// done already, it is a success.
    ///
    /// # Errors
    /// [`UpperError`]; then it goes with the attachment as before.
    pub fn keep(&self, attachment: &Attachment, name: &UpperName) -> Result<(), UpperError> {
        self.disk.keep(&attachment.id, name)?;
        let (from, to) = (Key::Own(attachment.id.clone()), Key::Named(name.clone()));
        self.uses().rename(&from, &to);
        Ok(())
    }

    /// Undoes [`Uppers::keep`], before anybody was told of it; the name stays reserved.
    ///
    /// # Errors
    /// [`UpperError::Disk`]; then it has the name.
    pub fn keep_no_more(&self, attachment: &Attachment, name: &UpperName) -> Result<(), UpperError> {
        self.disk.keep_no_more(&attachment.id, name)?;
        let mut uses = self.uses();
        let name = Key::Named(name.clone());
        uses.rename(&name, &Key::Own(attachment.id.clone()));
        _ = uses.claim(name, &attachment.id, &attachment.container);
        Ok(())
    }

    /// Whether what an attachment has written has got a name, though the attachment is on record.
    pub fn was_kept(&self, attachment: &Attachment) -> bool {
        matches!(&attachment.upper, Some(Upper { name: None, .. })) && self.disk.was_kept(&attachment.id)
    }

    /// The container in which what has this name may still drain.
    pub fn drains_in(&self, name: &UpperName) -> Option<ContainerKey> {
        self.uses().drains_in(&Key::Named(name.clone()))
    }

    /// What becomes of what an attachment has written that has just ended, by how it did: what somebody asked to be kept is,
    /// and what nobody was asked about. What cannot have the name that it was to have is kept under the attachment's id. False
    /// when it cannot be kept at all: then it is to stay on record, as what is not would be removed. Blocks.
    #[must_use]
    pub fn settle(&self, attachment: &Attachment) -> bool {
        let Some(Upper { name: None, .. }) = &attachment.upper else { return true };
        let asked = match &attachment.phase {
            Phase::Detaching { fate: Some(Fate::Keep(name)), .. } => Some(name),
            Phase::Attaching | Phase::Detaching { fate: Some(Fate::Drop), .. } => return true,
            // Somebody else unmounted it, or the answer to a detach was lost.
            Phase::Attached | Phase::Replacing { .. } | Phase::Detaching { .. } | Phase::Waiting => None,
        };
        if !self.disk.has(&Key::Own(attachment.id.clone())) {
            return true;
        }
        let of_id = attachment.id.parse().ok();
        for name in asked.into_iter().chain(&of_id) {
            match self.keep(attachment, name) {
                Ok(()) => {
                    tracing::info!(attachment = attachment.id, %name, "what was written is kept");
                    return true;
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(attachment = attachment.id, %name, error, "what was written cannot be kept by this name");
                }
            }
        }
        false
    }

    /// An attachment has ended: what it has written goes, unless that has a name, as soon as it does not drain. So does
    /// what has a name and was made for an attachment that never came to be.
    pub fn ended(&self, attachment: &Attachment) {
        if let Some(upper) = &attachment.upper {
            let never_was = upper.fresh && attachment.phase == Phase::Attaching;
            self.uses().end(&attachment.id, never_was);
            self.tidy();
        }
    }

    /// What drains in a container; `None` until its shim has said so.
    pub fn drains(&self, container: &ContainerKey, ids: Option<HashSet<String>>) {
        self.uses().drains(container, ids);
        self.tidy();
    }

    /// Removes what nobody has any more, on a thread of its own. Nobody can take it from now on.
    pub fn tidy(&self) {
        let free = self.uses().free();
        let (this, keys) = (self.clone(), free.clone());
        let removing = in_background(free.is_empty(), move || {
            // First the names, for which somebody may wait.
            let retired: Vec<_> = keys.iter().filter_map(|key| this.retire(key)).collect();
            remove_all(retired);
        });
        if !removing {
            free.iter().for_each(|key| self.uses().removed(key));
        }
    }

    pub(super) fn retire(&self, key: &Key) -> Option<Result<Retired, UpperError>> {
        let retired = self.disk.retire(key, &fresh_id()).transpose();
        self.uses().removed(key);
        retired
    }

    /// All that have names, in their order.
    ///
    /// # Errors
    /// [`UpperError`].
    pub fn list(&self) -> Result<Vec<Listed>, UpperError> {
        let mut listed = Vec::new();
        for key in self.disk.list()? {
            let Key::Named(name) = &key else { continue };
            let used_by = self.uses().holder(&key);
            listed.push(Listed { name: name.clone(), about: self.known(&key), used_by });
        }
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    pub(super) fn known(&self, key: &Key) -> Option<About> {
        self.disk.about(key).inspect_err(|error| tracing::warn!(%error, "it is there all the same")).ok()
    }

    /// What is known of one that has a name.
    ///
    /// # Errors
    /// [`UpperError::Unknown`].
    pub fn find(&self, name: &UpperName) -> Result<About, UpperError> {
        let key = Key::Named(name.clone());
        if self.disk.has(&key) { self.disk.about(&key) } else { Err(UpperError::Unknown(name.clone())) }
    }

    /// Removes one that has a name, with all that was written, also where what is known of it is damaged. Blocks.
    ///
    /// # Errors
    /// [`UpperError::Unknown`], and who has it.
    pub fn remove(&self, name: &UpperName) -> Result<Listed, UpperError> {
        let key = Key::Named(name.clone());
        if !self.disk.has(&key) {
            return Err(UpperError::Unknown(name.clone()));
        }
        let about = self.known(&key);
        // Until its name is gone no attachment takes it.
        self.uses().remove(key.clone()).map_err(|taken| refused(name, taken))?;
        self.retire(&key).transpose()?.map_or(Ok(()), Retired::remove)?;
        Ok(Listed { name: name.clone(), about, used_by: None })
    }

    /// Begins to read what an attachment has written, or what has a name: it stays where it is, over the version that it is
    /// over, until this is dropped.
    ///
    /// # Errors
    /// [`UpperError`].
    pub fn read(&self, of: &Readable<'_>) -> Result<Reading, UpperError> {
        let key = match of {
            Readable::Attachment(attachment) => key(attachment).ok_or(UpperError::Nothing)?,
            Readable::Named(name) => Key::Named((*name).clone()),
            Readable::Volume(id) => Key::Volume((*id).clone()),
        };
        let taken = |taken| match &key {
            Key::Named(name) => refused(name, taken),
            Key::Own(id) => UpperError::Ended(id.clone()),
            Key::Volume(id) => UpperError::VolumeGoes(id.clone()),
        };
        let whose = self.uses().read(&key).map_err(taken)?;
        // From here on nobody else takes it.
        match self.over(of, whose.as_deref()) {
            Ok(over) => Ok(Reading::new(self.clone(), key.clone(), whose, self.disk.place(&key), over)),
            Err(error) => {
                self.uses().read_no_more(&key, whose.as_deref());
                self.tidy();
                Err(error)
            }
        }
    }

    fn over(&self, of: &Readable<'_>, whose: Option<&str>) -> Result<Over, UpperError> {
        match of {
            Readable::Attachment(Attachment { id, .. }) if whose != Some(id) => {
                Err(UpperError::Ended(id.clone()))
            }
            Readable::Attachment(Attachment { capsule, current, .. }) => Ok(Over {
                capsule: capsule.clone(),
                version: current.version.clone(),
                digest: current.digest.clone(),
            }),
            Readable::Named(name) => self.find(name)?.over.ok_or(UpperError::Nothing),
            Readable::Volume(id) => {
                self.disk.about(&Key::Volume((*id).clone()))?.over.ok_or(UpperError::Nothing)
            }
        }
    }
}

/// On a thread of its own, unless there is nothing to do: there may be millions of files, and nobody is to wait for them. False when
/// there is no thread.
fn in_background(is_nothing: bool, work: impl FnOnce() + Send + 'static) -> bool {
    if is_nothing {
        return true;
    }
    match std::thread::Builder::new().name("remove".to_owned()).spawn(work) {
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(%error, "what is to be removed stays until the next start");
            false
        }
    }
}

fn remove_all(gone: Vec<Result<Retired, UpperError>>) {
    for one in gone {
        if let Err(error) = one.and_then(Retired::remove) {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "what an attachment has written stays until the next start");
        }
    }
}

/// Waits for what loses its name in this moment. Blocks.
fn once_removed(claim: impl Fn() -> Result<(), Taken>) -> Result<(), Taken> {
    let until = Instant::now() + PATIENCE;
    loop {
        match claim() {
            Err(Taken::Removed) if Instant::now() < until => sleep(Duration::from_millis(5)),
            done => return done,
        }
    }
}

fn refused(name: &UpperName, taken: Taken) -> UpperError {
    let name = name.clone();
    match taken {
        Taken::By(by) => UpperError::InUse { name, by },
        Taken::Read => UpperError::BeingRead(name),
        Taken::Removed => UpperError::BeingRemoved(name),
    }
}

/// What can be read.
#[derive(Debug)]
pub enum Readable<'a> {
    /// What an attachment writes to.
    Attachment(&'a Attachment),
    /// What has a name.
    Named(&'a UpperName),
    /// What a volume has.
    Volume(&'a VolumeId),
}

fn key(attachment: &Attachment) -> Option<Key> {
    let upper = attachment.upper.as_ref()?;
    Some(upper.name.clone().map_or_else(|| Key::Own(attachment.id.clone()), Key::Named))
}

/// The name under which a detach of it keeps what was written.
pub fn kept_as(intent: &Attachment) -> Option<&UpperName> {
    match &intent.phase {
        Phase::Detaching { fate: Some(Fate::Keep(name)), .. } => Some(name),
        _ => None,
    }
}

fn check(name: &UpperName, there: &About, version: &Resolved, size: Option<u64>) -> Result<(), UpperError> {
    if let Some(over) = there.over.as_ref().filter(|over| over.capsule != version.name) {
        let (of, wanted) = (over.capsule.clone(), version.name.clone());
        return Err(UpperError::OtherCapsule { name: name.clone(), of, wanted });
    }
    if size.is_some() && size != there.limit {
        let has =
            there.limit.map_or_else(|| "as much as the disk".to_owned(), |limit| format!("{limit} bytes"));
        return Err(UpperError::OtherSize { name: name.clone(), has });
    }
    Ok(())
}
