//! One function per command: request, call, view, print.

mod archives;
mod budget;
mod certs;
mod devices;
pub mod diff;
mod doctor;
mod events;
mod metrics;
mod profile;
mod prune;
mod setup;
mod sign;
mod tags;
mod transfer;
mod volumes;
mod written;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use capsule_proto::capsule::v1;
use clap::CommandFactory;
use serde::Serialize;

use crate::args::{BuildArgs, CapsuleRef, Cli, Command, DiffArgs, Output, ResolveArgs};
use crate::base;
use crate::client::Client;
use crate::error::Error;
use crate::lock::Lock;
use crate::man;
use crate::publish;
use crate::remote::Place;
use crate::request;
use crate::text::{Attached, Detached, Listed, Text};
use crate::top;
use crate::trace::Caller;
use crate::view::{Attachments, Built, Inspection, Moves, Plan, Versions};

pub use self::certs::CertsError;

/// Whether the command asks a node anything, this machine's or another.
pub fn asks_a_node(command: &Command) -> bool {
    use Command::{Certs, Completion, Keygen, Man};
    !matches!(command, Certs { .. } | Keygen { .. } | Completion { .. } | Man { .. })
}

/// Carries out the command.
///
/// # Errors
/// Any of [`Error`]; then nothing was printed on standard output.
pub async fn run(cli: Cli, caller: &Caller) -> Result<(), Error> {
    let Cli { address, config, node, namespace, output, command, .. } = cli;
    let namespace = namespace.as_deref();
    let place = match asks_a_node(&command) {
        false => Place::Socket(address),
        true => Place::chosen(address, config.as_deref(), node.as_deref())?,
    };
    let to = Target { place: &place, output, caller };
    to.warn();
    match command {
        Command::Build(args) => build(to, &args).await,
        Command::Ls { name } => ls(to, name).await,
        Command::Inspect { capsule } => inspect(to, capsule).await,
        Command::Tag(args) => tags::tag(to, args).await,
        Command::Untag { tag } => tags::untag(to, tag).await,
        Command::Pull(args) => transfer::pull(to, args).await,
        Command::Push(args) => transfer::push(to, args).await,
        Command::Save(args) => archives::save(to, args).await,
        Command::Load { file } => archives::load(to, &file).await,
        Command::Sign(args) => sign::sign(to, args).await,
        Command::Verify(args) => sign::verify(to, args).await,
        Command::Keygen { prefix } => sign::keygen(to, &prefix),
        Command::Import(args) => transfer::import(to, args, namespace).await,
        Command::Diff(args) => diff(to, args).await,
        Command::Resolve(args) => resolve(to, args, namespace).await,
        Command::Attach(args) => {
            let locked = args.locked.as_deref().map(read_lock).transpose()?;
            let dry_run = args.dry_run;
            let request = request::attach(args, locked, namespace)?;
            if dry_run { plan(to, request::dry_run(request), None).await } else { attach(to, request).await }
        }
        Command::Upgrade(args) => upgrade(to, request::upgrade(args, namespace)?).await,
        Command::Rollback(args) => rollback(to, request::rollback(args, namespace)?).await,
        Command::Detach(args) => detach(to, request::detach(args, namespace)?).await,
        Command::Commit(args) => written::commit(to, args, namespace).await,
        Command::Uppers { command } => written::uppers(to, command).await,
        Command::Volumes { command } => volumes::volumes(to, command).await,
        Command::Ps { container, users } => {
            // A namespace alone asks for all of its containers, which the API has no word for.
            let only = namespace.filter(|_| container.is_none());
            ps(to, request::list_attachments(container, namespace)?, only, users).await
        }
        Command::Devices(args) => devices::list(to, args).await,
        Command::Budget => budget::list(to).await,
        Command::Metrics { listen } => metrics::metrics(to, listen).await,
        Command::Top { every } => top::top(to, every).await,
        Command::Prune(args) => prune::prune(to, args).await,
        Command::Rm(args) => prune::remove(to, args).await,
        Command::Events(args) => events::follow(to, request::events(args, namespace)?).await,
        Command::Doctor(args) => doctor::doctor(to, args).await,
        Command::Setup(args) => setup::setup(to, args).await,
        Command::Profile(args) => profile::profile(to, args).await,
        Command::Certs { command } => certs::certs(to, command),
        Command::Completion { shell } => completion(shell),
        Command::Man { folder } => manual(&folder),
    }
}

/// Where calls go and how results are printed.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    place: &'a Place,
    caller: &'a Caller,
    pub output: Output,
}

impl<'a> Target<'a> {
    /// Connects to capsuled.
    ///
    /// # Errors
    /// As [`Client::at`].
    pub async fn connect(self) -> Result<Client, Error> {
        Client::at(self.place, self.caller.clone()).await
    }

    /// The socket on this machine, for what looks at the machine itself.
    ///
    /// # Errors
    /// [`Error::Usage`] when a node elsewhere is meant.
    fn socket(self, what: &str) -> Result<&'a Path, Error> {
        match self.place {
            Place::Socket(address) => Ok(address),
            Place::Node(node) => Err(Error::Usage(format!(
                "{what} looks at the machine it runs on: run it on node `{}` without --config and --node",
                node.name
            ))),
        }
    }

    /// Says on standard error what a person should know before it is too late.
    fn warn(self) {
        if let Place::Node(node) = self.place
            && let Some(warning) = node.warning()
        {
            // It is not what was asked for.
            let _ = writeln!(std::io::stderr(), "capsulectl: {}", crate::text::escape_control(&warning));
        }
    }

    /// Prints a result.
    ///
    /// # Errors
    /// [`Error::Print`].
    pub fn print(self, value: &impl Serialize, text: &impl Text) -> Result<(), Error> {
        let mut out = match self.output {
            Output::Text => text.text(SystemTime::now()),
            Output::Json => serde_json::to_string_pretty(value).map_err(Error::Json)?,
        };
        if !out.ends_with('\n') {
            out.push('\n');
        }
        write_out(out.as_bytes())
    }
}

/// Writes to standard output.
///
/// # Errors
/// [`Error::Print`].
pub fn write_out(bytes: &[u8]) -> Result<(), Error> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(Error::Print)
}

async fn build(to: Target<'_>, args: &BuildArgs) -> Result<(), Error> {
    let started = Instant::now();
    // What can be judged without capsuled is judged before it is asked.
    let (client, offer) = match args.base.clone() {
        None => {
            let offer = publish::prepare(args, None)?;
            (to.connect().await?, offer)
        }
        Some(base) => {
            let client = to.connect().await?;
            let base = base::read(&client, base).await?;
            (client, publish::prepare(args, Some(base))?)
        }
    };
    let (answer, summary) = publish::send(&client, offer).await?;
    let built = Built::new(answer, &summary, started.elapsed())?;
    to.print(&built, &built)
}

async fn ls(to: Target<'_>, name: Option<String>) -> Result<(), Error> {
    let request = v1::ListCapsulesRequest { name: name.unwrap_or_default() };
    let answer = to.connect().await?.capsules().list_capsules(request).await?.into_inner();
    let versions = Versions::from(answer);
    to.print(&versions, &versions)
}

async fn inspect(to: Target<'_>, capsule: CapsuleRef) -> Result<(), Error> {
    let request =
        v1::InspectCapsuleRequest { name: capsule.name, version: capsule.version.unwrap_or_default() };
    let answer = to.connect().await?.capsules().inspect_capsule(request).await?.into_inner();
    let inspection = Inspection::try_from(answer)?;
    to.print(&inspection, &inspection)
}

async fn diff(to: Target<'_>, args: DiffArgs) -> Result<(), Error> {
    let differences = diff::read(&to.connect().await?, args).await?;
    to.print(&differences, &differences)
}

async fn resolve(to: Target<'_>, args: ResolveArgs, namespace: Option<&str>) -> Result<(), Error> {
    let ResolveArgs { capsules, container, lock, dry_run } = args;
    let request = request::resolve(capsules, container, namespace)?;
    plan(to, request, lock.filter(|_| !dry_run)).await
}

/// Shows a plan, and locks its versions where a file is named for that.
async fn plan(to: Target<'_>, request: v1::ResolveRequest, lock: Option<PathBuf>) -> Result<(), Error> {
    let answer = to.connect().await?.attachments().resolve(request).await?.into_inner();
    if let Some(path) = lock {
        let text = Lock::of(&answer.planned).text().map_err(Error::Toml)?;
        fs::write(&path, text).map_err(|source| Error::WriteLock { path, source })?;
    }
    let plan = Plan::from(answer.planned);
    to.print(&plan, &plan)
}

fn read_lock(path: &Path) -> Result<Lock, Error> {
    let path = path.to_owned();
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(source) => return Err(Error::ReadDeclaration { path, source }),
    };
    Lock::parse(&text).map_err(|mistake| Error::Declaration { path, mistake })
}

async fn attach(to: Target<'_>, request: v1::AttachRequest) -> Result<(), Error> {
    let answer = to.connect().await?.attachments().attach(request).await?.into_inner();
    let attached = Attachments::from(answer.attachments);
    to.print(&attached, &Attached(&attached))
}

async fn upgrade(to: Target<'_>, request: v1::UpgradeRequest) -> Result<(), Error> {
    let dry_run = request.dry_run;
    let answer = to.connect().await?.attachments().upgrade(request).await?.into_inner();
    if dry_run {
        let plan = Plan::from(answer.planned);
        return to.print(&plan, &plan);
    }
    let moves = Moves::new("upgrade", answer.attachments, answer.from_versions)?;
    to.print(&moves, &moves)
}

async fn rollback(to: Target<'_>, request: v1::RollbackRequest) -> Result<(), Error> {
    let answer = to.connect().await?.attachments().rollback(request).await?.into_inner();
    let moves = Moves::new("rollback", answer.attachments, answer.from_versions)?;
    to.print(&moves, &moves)
}

async fn detach(to: Target<'_>, request: v1::DetachRequest) -> Result<(), Error> {
    let answer = to.connect().await?.attachments().detach(request).await?.into_inner();
    let detached = Attachments::from(answer.attachments);
    to.print(&detached, &Detached(&detached))
}

async fn ps(
    to: Target<'_>,
    request: v1::ListAttachmentsRequest,
    only: Option<&str>,
    users: bool,
) -> Result<(), Error> {
    let answer = to.connect().await?.attachments().list_attachments(request).await?.into_inner();
    let mut listed = Attachments::from(answer.attachments);
    listed.attachments.retain(|a| only.is_none_or(|namespace| a.namespace == namespace));
    to.print(&listed, &Listed { attachments: &listed, users })
}

fn manual(folder: &Path) -> Result<(), Error> {
    for page in man::pages(Cli::command()).map_err(Error::Print)? {
        let path = folder.join(page.file);
        fs::write(&path, page.text).map_err(|source| Error::WritePage { path, source })?;
    }
    Ok(())
}

fn completion(shell: clap_complete::Shell) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "capsulectl", &mut script);
    write_out(&script)
}
