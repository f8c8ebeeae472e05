//! A shim that does as it is told.

use protobuf::MessageField;

use super::*;

/// What the shim has mounted, what it was asked, and what it is to refuse.
#[derive(Default)]
pub(super) struct FakeState {
    pub(super) mounted: BTreeMap<String, wire::AttachRequest>,
    pub(super) calls: Vec<String>,
    pub(super) refuse: Vec<String>,
    /// Calls that are carried out, but answered as late.
    pub(super) late: Vec<String>,
    pub(super) busy: bool,
    /// What is detached has users.
    pub(super) drains: bool,
    /// What has users, though it was detached.
    pub(super) draining: BTreeMap<String, wire::AttachRequest>,
    /// Attachments that somebody else has unmounted.
    pub(super) unmounted: Vec<String>,
    /// It knows of no upper directories, of no devices, of no resources and of no denials.
    pub(super) old: bool,
    /// Limits could not be put back.
    pub(super) limits_left: bool,
}

impl FakeState {
    /// A content as it answers it.
    fn told(&self, content: &MessageField<wire::Content>) -> MessageField<wire::Content> {
        let mut told = content.clone();
        if let (true, Some(content)) = (self.old, told.as_mut()) {
            content.denied_calls.clear();
        }
        told
    }
}

#[derive(Clone, Default)]
pub(super) struct FakeShim(pub(super) Arc<Mutex<FakeState>>);

impl FakeShim {
    pub(super) fn call(&self, call: String) -> ttrpc::Result<std::sync::MutexGuard<'_, FakeState>> {
        let mut state = self.0.lock().unwrap();
        state.calls.push(call.clone());
        if state.refuse.contains(&call) {
            let status = ttrpc::get_status(ttrpc::Code::FAILED_PRECONDITION, format!("no {call}"));
            return Err(ttrpc::Error::RpcStatus(status));
        }
        Ok(state)
    }

    pub(super) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }

    pub(super) fn mounted(&self) -> Vec<String> {
        let state = self.0.lock().unwrap();
        let mut all: Vec<String> = state.mounted.values().map(label).collect();
        all.sort();
        all
    }
}

/// `CAPSULE@VERSION`, and the nodes of its devices.
fn label(request: &wire::AttachRequest) -> String {
    let capsule = request.content.as_ref().map(|content| format!("{}@{}", content.capsule, content.version));
    let nodes = request.devices.nodes.iter().map(|node| node.path.clone());
    capsule.into_iter().chain(nodes).collect::<Vec<_>>().join(" ")
}

#[async_trait::async_trait]
impl Hotplug for FakeShim {
    async fn attach(
        &self,
        _: &TtrpcContext,
        request: wire::AttachRequest,
    ) -> ttrpc::Result<wire::AttachResponse> {
        let call = format!("attach {}", label(&request));
        let mut state = self.call(call.clone())?;
        let mut reply = wire::AttachResponse::new();
        let attachment = reply.attachment.mut_or_insert_default();
        attachment.writable = request.upper.is_some() && !state.old;
        attachment.has_devices = request.devices.is_some() && !state.old;
        attachment.has_resources = request.resources.is_some() && !state.old;
        attachment.content = state.told(&request.content);
        state.mounted.insert(request.attachment_id.clone(), request);
        if state.late.contains(&call) {
            let status = ttrpc::get_status(ttrpc::Code::DEADLINE_EXCEEDED, "timeout".to_owned());
            return Err(ttrpc::Error::RpcStatus(status));
        }
        Ok(reply)
    }

    async fn replace(
        &self,
        _: &TtrpcContext,
        request: wire::ReplaceRequest,
    ) -> ttrpc::Result<wire::ReplaceResponse> {
        let mut state =
            self.call(format!("replace {}@{}", request.content.capsule, request.content.version))?;
        let mut reply = wire::ReplaceResponse::new();
        reply.attachment.mut_or_insert_default().has_resources = request.resources.is_some() && !state.old;
        reply.attachment.mut_or_insert_default().content = state.told(&request.content);
        let there = state.mounted.get_mut(&request.attachment_id).unwrap();
        reply.replaced = std::mem::replace(&mut there.content, request.content);
        there.resources = request.resources;
        Ok(reply)
    }

    async fn detach(
        &self,
        _: &TtrpcContext,
        request: wire::DetachRequest,
    ) -> ttrpc::Result<wire::DetachResponse> {
        let name =
            self.0.lock().unwrap().mounted.get(&request.attachment_id).map(|m| match &*m.content.capsule {
                "" => label(m),
                capsule => capsule.to_owned(),
            });
        let mut state = self.call(format!("detach {}", name.unwrap_or_default()))?;
        let mut reply = wire::DetachResponse::new();
        if state.busy && !request.lazy {
            let mut user = wire::User::new();
            (user.pid, user.command, user.path, user.how) = (7, "cat".into(), "/t/x".into(), "fd 3".into());
            reply.users.push(user);
        } else {
            let gone = state.mounted.remove(&request.attachment_id);
            if let (true, Some(gone)) = (state.drains, gone) {
                state.draining.insert(request.attachment_id, gone);
                reply.users.push(wire::User::new());
            }
            if state.late.contains(&"detach".to_owned()) {
                let status = ttrpc::get_status(ttrpc::Code::DEADLINE_EXCEEDED, "timeout".to_owned());
                return Err(ttrpc::Error::RpcStatus(status));
            }
            reply.detached = true;
        }
        Ok(reply)
    }

    async fn list(&self, _: &TtrpcContext, _: wire::ListRequest) -> ttrpc::Result<wire::ListResponse> {
        let state = self.0.lock().unwrap();
        if state.refuse.iter().any(|call| call == "list") {
            return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INTERNAL, "no list")));
        }
        let mut reply = wire::ListResponse::new();
        reply.limits_left = state.limits_left;
        for (id, request) in &state.mounted {
            let mut attachment = wire::Attachment::new();
            attachment.attachment_id = id.clone();
            attachment.content = request.content.clone();
            attachment.mounted = !state.unmounted.contains(id);
            reply.attachments.push(attachment);
        }
        for (id, request) in &state.draining {
            let mut draining = wire::Draining::new();
            (draining.attachment_id, draining.content) = (id.clone(), request.content.clone());
            reply.draining.push(draining);
        }
        Ok(reply)
    }
}
