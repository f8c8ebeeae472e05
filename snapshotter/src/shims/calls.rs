//! The calls of the hot-plug protocol, one function for each. A shim is as old as its container: what it does not know of it leaves
//! out, which its answer shows.

use capsule_proto::hotplug::{AttachRequest, DetachRequest, ListRequest, Mode as WireMode, ReplaceRequest};
use protobuf::MessageField;

use super::{
    DEADLINE, Look, Report, ShimError, Shims, User,
    wire::{draining, mounted, notice, user, wire_content, wire_devices, wire_resources, wire_upper},
};
use crate::{
    attachments::model::{Attachment, ContainerKey, Content},
    capsules::model::Mode,
    traces,
};

/// What a shim is that knows of no resources, and what to do.
const OLDER_THAN_RESOURCES: &str =
    "of a release before resources: start the container anew, then repeat the call";
const OLDER_THAN_DENIALS: &str = "older than this capsuled and denies no system calls: recreate the container, or use a version that denies none";

impl Shims {
    /// Mounts the attachment's current content and gives its devices.
    ///
    /// # Errors
    /// [`ShimError`].
    pub async fn attach(&self, attachment: &Attachment) -> Result<(), ShimError> {
        self.attach_as(attachment, false).await
    }

    /// Mounts again what was there a moment ago, whatever the container uses by now.
    ///
    /// # Errors
    /// [`ShimError`].
    pub async fn attach_back(&self, attachment: &Attachment) -> Result<(), ShimError> {
        self.attach_as(attachment, true).await
    }

    async fn attach_as(&self, attachment: &Attachment, undoing: bool) -> Result<(), ShimError> {
        let mut request = AttachRequest::new();
        request.container_id = attachment.container.id.clone();
        request.attachment_id = attachment.id.clone();
        request.undoing = undoing;
        if attachment.has_capsule() {
            request.content = MessageField::some(wire_content(attachment, &attachment.current));
        }
        request.devices = attachment.devices.as_ref().map(wire_devices).into();
        request.target = attachment.target.clone();
        request.mode = match attachment.mode {
            Mode::Ro => WireMode::RO,
            Mode::Union => WireMode::UNION,
        }
        .into();
        request.upper = attachment.upper.as_ref().map(wire_upper).into();
        request.resources = wire_resources(&attachment.current.resources).into();
        let (asks_devices, asks_resources) = (request.devices.is_some(), request.resources.is_some());
        let denied = request.content.denied_calls.clone();
        let reply = self
            .call(&attachment.container, request, |client, request| async move {
                client.attach(context(), &request).await
            })
            .await?;
        traces::relay(&reply.spans);
        let lacks = if asks_devices && !reply.attachment.has_devices {
            "of a release before devices: start the container anew, then attach"
        } else if asks_resources && !reply.attachment.has_resources {
            OLDER_THAN_RESOURCES
        } else if reply.attachment.content.denied_calls != denied {
            OLDER_THAN_DENIALS
        } else if attachment.upper.is_some() && !reply.attachment.writable {
            "older than this capsuled and attaches read-only: recreate the container, or attach read-only"
        } else {
            return Ok(());
        };
        // Half of what was asked for: whoever is told that it is there would find out by an error, much later.
        let undone = matches!(self.detach(attachment, true).await, Ok((true, _)));
        Err(ShimError::Older { container: attachment.container.clone(), lacks, undone })
    }

    /// Puts `content` in the place of what the attachment has mounted.
    pub async fn replace(&self, attachment: &Attachment, content: &Content) -> Result<(), ShimError> {
        self.replace_as(attachment, content, false).await
    }

    /// Puts the attachment's current content back, whatever the container uses by now.
    ///
    /// # Errors
    /// [`ShimError`].
    pub async fn replace_back(&self, attachment: &Attachment) -> Result<(), ShimError> {
        self.replace_as(attachment, &attachment.current, true).await
    }

    async fn replace_as(
        &self,
        attachment: &Attachment,
        content: &Content,
        undoing: bool,
    ) -> Result<(), ShimError> {
        let mut request = ReplaceRequest::new();
        request.container_id = attachment.container.id.clone();
        request.attachment_id = attachment.id.clone();
        request.content = MessageField::some(wire_content(attachment, content));
        request.resources = wire_resources(&content.resources).into();
        request.undoing = undoing;
        let (asks, denied) = (request.resources.is_some(), request.content.denied_calls.clone());
        let replace = async |request: ReplaceRequest| {
            self.call(&attachment.container, request, |client, request| async move {
                client.replace(context(), &request).await
            })
            .await
        };
        let reply = replace(request.clone()).await?;
        traces::relay(&reply.spans);
        let lacks = if asks && !reply.attachment.has_resources {
            OLDER_THAN_RESOURCES
        } else if reply.attachment.content.denied_calls != denied {
            OLDER_THAN_DENIALS
        } else {
            return Ok(());
        };
        request.content = reply.replaced.0.map(|content| *content).into();
        request.resources = MessageField::none();
        let undone = replace(request).await.is_ok();
        let container = attachment.container.clone();
        Err(ShimError::Older { container, lacks, undone })
    }

    /// Unmounts the attachment. False, with its users, if it is in use and `lazy` is not set; true with users if it
    /// drains.
    pub async fn detach(&self, attachment: &Attachment, lazy: bool) -> Result<(bool, Vec<User>), ShimError> {
        let mut request = DetachRequest::new();
        request.container_id = attachment.container.id.clone();
        request.attachment_id = attachment.id.clone();
        request.lazy = lazy;
        let reply = self
            .call(&attachment.container, request, |client, request| async move {
                client.detach(context(), &request).await
            })
            .await?;
        traces::relay(&reply.spans);
        Ok((reply.detached, reply.users.into_iter().map(user).collect()))
    }

    /// What the shim has for a container; with `with_users`, who uses what is draining.
    pub async fn list(&self, container: &ContainerKey, with_users: bool) -> Result<Report, ShimError> {
        let mut request = ListRequest::new();
        request.container_id = container.id.clone();
        request.with_users = with_users;
        let reply = self
            .call(container, request, |client, request| async move { client.list(context(), &request).await })
            .await?;
        Ok(Report {
            mounted: reply.attachments.into_iter().map(mounted).collect(),
            draining: reply.draining.into_iter().map(draining).collect(),
            limits_left: reply.limits_left,
        })
    }

    /// Has the shim look at a container, and gives what it has noticed since the notice of this number; those up to it, it forgets.
    ///
    /// # Errors
    /// [`ShimError`].
    pub async fn notices(&self, container: &ContainerKey, after: u64) -> Result<Look, ShimError> {
        let mut request = ListRequest::new();
        request.container_id = container.id.clone();
        request.notices_after = after;
        let reply = self
            .call(container, request, |client, request| async move { client.list(context(), &request).await })
            .await?;
        let limits_left = reply.limits_left;
        Ok(Look { notices: reply.notices.into_iter().map(notice).collect(), limits_left })
    }
}

fn context() -> ttrpc::context::Context {
    traces::context(DEADLINE)
}
