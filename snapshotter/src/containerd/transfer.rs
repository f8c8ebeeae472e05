//! containerd's transfer service: images from and to registries and archives, by containerd itself, with its registry
//! hosts (containerd `docs/transfer.md`; what 1.7 lacks of it: `docs/adr/0019`).

use std::path::{Path, PathBuf};

use capsule_proto::containerd::{
    services::transfer::v1::{TransferOptions, TransferRequest, transfer_client::TransferClient},
    types::{
        Platform,
        transfer::{
            AuthRequest, AuthResponse, AuthType, ImageExportStream, ImageImportStream, ImageReference,
            ImageStore, OciRegistry, Progress, RegistryResolver,
        },
    },
};
use futures::{Stream as Flow, StreamExt};
use prost_types::Any;
use tokio::sync::mpsc;

use super::{
    ContainerdError, Scope,
    archive::Tar,
    streams::{Stream, pack},
};

/// What a registry is asked by name and password for.
#[derive(Clone)]
pub struct Credential {
    /// `HOST` or `HOST:PORT`: nobody else is told.
    pub host: String,
    /// Who.
    pub username: String,
    /// Never shown.
    pub password: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("host", &self.host).field("username", &self.username).finish()
    }
}

/// An image in a registry.
#[derive(Debug, Clone)]
pub struct RegistryImage {
    /// `HOST/REPOSITORY:TAG` or `…@DIGEST`.
    pub reference: String,
    /// containerd's directory of registry hosts.
    pub hosts: PathBuf,
    /// For its host, and for others that may stand in for it.
    pub credentials: Vec<Credential>,
}

/// How far a transfer has come with one blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// containerd's word.
    pub event: String,
    /// The blob.
    pub name: String,
    /// Bytes.
    pub done: u64,
    /// Bytes; 0 when unknown.
    pub total: u64,
}

/// Where progress is told. Who does not listen misses some; who has gone ends the transfer.
pub type Listener = mpsc::Sender<Moved>;

impl Scope {
    /// Fetches an image and gives it the name `to`, whatever that stood for. Content is kept by the scope's lease.
    ///
    /// # Errors
    /// containerd's, of which most have no code of their own. [`ContainerdError::Abandoned`] when nobody listens.
    pub async fn pull_image(
        &self,
        from: &RegistryImage,
        to: &str,
        listener: &Listener,
    ) -> Result<(), ContainerdError> {
        let what = format!("pull {}", from.reference);
        let store = ImageStore { name: to.to_owned(), platforms: vec![here()], ..Default::default() };
        let auth = self.open_auth(from).await?;
        let source = registry(from, auth.as_ref());
        self.move_image(&what, source, pack(&store), auth.map(|auth| (auth, from)), listener).await
    }

    /// Sends the image `name` to a registry.
    ///
    /// # Errors
    /// As [`Scope::pull_image`].
    pub async fn push_image(
        &self,
        name: &str,
        to: &RegistryImage,
        listener: &Listener,
    ) -> Result<(), ContainerdError> {
        let what = format!("push {name} to {}", to.reference);
        let store = ImageStore { name: name.to_owned(), platforms: vec![here()], ..Default::default() };
        let auth = self.open_auth(to).await?;
        let destination = registry(to, auth.as_ref());
        self.move_image(&what, pack(&store), destination, auth.map(|auth| (auth, to)), listener).await
    }

    /// Reads an archive (OCI, or what `docker save` writes) and gives its index the name `to`. No other name changes.
    /// An error in `archive`, as text, ends it.
    ///
    /// # Errors
    /// containerd's; [`ContainerdError::Source`] with the archive's.
    pub async fn import_archive(
        &self,
        to: &str,
        mut archive: impl Flow<Item = Result<Vec<u8>, String>> + Send + Unpin,
    ) -> Result<(), ContainerdError> {
        let mut out = self.open_stream("import").await?;
        let source = ImageImportStream { stream: std::mem::take(&mut out.id), ..Default::default() };
        let store = ImageStore { name: to.to_owned(), platforms: vec![here()], ..Default::default() };
        let mut out = out.bytes_out();
        let feed = async {
            while let Some(piece) = archive.next().await {
                match out.send(&piece.map_err(ContainerdError::Source)?).await {
                    Ok(true) => {}
                    // The call says why.
                    Ok(false) | Err(_) => return std::future::pending().await,
                }
            }
            out.end().await;
            std::future::pending().await
        };
        tokio::select! {
            biased;
            done = self.transfer("read the archive", pack(&source), pack(&store), None) => done,
            failed = feed => failed,
        }
    }

    /// Writes images as one OCI archive, piece by piece. It is whole only if this succeeds.
    ///
    /// # Errors
    /// containerd's; [`ContainerdError::Abandoned`] when nobody takes the pieces.
    pub async fn export_archive(
        &self,
        names: &[String],
        pieces: &mpsc::Sender<Result<Vec<u8>, String>>,
    ) -> Result<(), ContainerdError> {
        let mut stream = self.open_stream("export").await?;
        let destination = ImageExportStream { stream: std::mem::take(&mut stream.id), ..Default::default() };
        let reference = |name: &String| ImageReference { name: name.clone(), ..Default::default() };
        let store =
            ImageStore { extra_references: names.iter().map(reference).collect(), ..Default::default() };
        let what = format!("write {}", names.join(", "));
        let (mut incoming, mut end) = (stream.bytes_in(), Tar::default());
        let call = self.transfer(&what, pack(&store), pack(&destination), None);
        tokio::pin!(call);
        let mut called = false;
        // containerd does not end the stream, and the call's answer may overtake the last pieces.
        while !(called && end.reached()) {
            tokio::select! {
                done = &mut call, if !called => {
                    done?;
                    called = true;
                }
                piece = incoming.next() => {
                    let Some(piece) = piece? else {
                        if !called {
                            (&mut call).await?;
                        }
                        let missing = "the archive's end";
                        return Err(ContainerdError::Incomplete { what: what.clone(), missing });
                    };
                    end.take(&piece, |_| {});
                    if pieces.send(Ok(piece)).await.is_err() {
                        return Err(ContainerdError::Abandoned);
                    }
                }
            }
        }
        Ok(())
    }

    async fn open_auth(&self, image: &RegistryImage) -> Result<Option<Stream>, ContainerdError> {
        if image.credentials.is_empty() { Ok(None) } else { self.open_stream("auth").await.map(Some) }
    }

    async fn move_image(
        &self,
        what: &str,
        source: Any,
        destination: Any,
        auth: Option<(Stream, &RegistryImage)>,
        listener: &Listener,
    ) -> Result<(), ContainerdError> {
        let progress = self.open_stream("progress").await?;
        let id = progress.id.clone();
        tokio::select! {
            biased;
            done = self.transfer(what, source, destination, Some(id)) => done,
            never = tell(progress, listener) => never,
            never = answer(auth) => never,
            () = listener.closed() => Err(ContainerdError::Abandoned),
        }
    }

    async fn transfer(
        &self,
        what: &str,
        source: Any,
        destination: Any,
        progress: Option<String>,
    ) -> Result<(), ContainerdError> {
        let options = progress.map(|progress_stream| TransferOptions { progress_stream });
        let request = TransferRequest { source: Some(source), destination: Some(destination), options };
        TransferClient::new(self.channel())
            .transfer(self.request(request))
            .await
            .map_err(|e| self.failed(what, e))?;
        Ok(())
    }
}

/// Goes on until it is dropped.
async fn tell(mut progress: Stream, listener: &Listener) -> Result<(), ContainerdError> {
    let count = |bytes: i64| u64::try_from(bytes).unwrap_or_default();
    while let Ok(Some(Progress { event, name, progress, total, .. })) = progress.next().await {
        // Progress that is late is no progress.
        listener.try_send(Moved { event, name, done: count(progress), total: count(total) }).ok();
    }
    std::future::pending().await
}

/// Answers the questions of containerd's resolver, each with what is meant for the host that asks; goes on until it is
/// dropped.
async fn answer(auth: Option<(Stream, &RegistryImage)>) -> Result<(), ContainerdError> {
    if let Some((mut stream, image)) = auth {
        while let Ok(Some(AuthRequest { host, .. })) = stream.next().await {
            let known = image.credentials.iter().find(|known| known.host == host);
            let reply = known.map_or_else(AuthResponse::default, |known| AuthResponse {
                auth_type: AuthType::Credentials.into(),
                secret: known.password.clone(),
                username: known.username.clone(),
                expire_at: None,
            });
            if !stream.send(&reply).await {
                break;
            }
        }
    }
    std::future::pending().await
}

fn registry(image: &RegistryImage, auth: Option<&Stream>) -> Any {
    let resolver = RegistryResolver {
        auth_stream: auth.map(|stream| stream.id.clone()).unwrap_or_default(),
        host_dir: text(&image.hosts),
        ..Default::default()
    };
    pack(&OciRegistry { reference: image.reference.clone(), resolver: Some(resolver) })
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Of an image for several platforms, what this machine needs.
fn here() -> Platform {
    Platform { os: "linux".to_owned(), architecture: crate::go_arch().to_owned(), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        let credential = Credential { host: "h".into(), username: "u".into(), password: "secret".into() };
        assert!(!format!("{credential:?}").contains("secret"));
    }
}
