//! From the command line to the wire: pure, one function per call.

use std::collections::{BTreeMap, HashMap};

use capsule_proto::capsule::v1::{self, commit_request::Of};

use crate::args::{
    AttachArgs, BuildArgs, CapsuleRef, CommitArgs, ContainerArg, DetachArgs, EventsArgs, KeyValue, LimitArgs,
    ModeArg, RollbackArgs, UpgradeArgs, WritableArgs,
};
use crate::declaration::{Amount, Declaration, Filled, Seccomp};
use crate::error::Error;
use crate::lock::Lock;

/// The wire form of a mode; unspecified leaves it to the capsule.
fn mode(mode: Option<ModeArg>) -> i32 {
    let mode = match mode {
        None => v1::Mode::Unspecified,
        Some(ModeArg::Ro) => v1::Mode::Ro,
        Some(ModeArg::Union) => v1::Mode::Union,
    };
    mode.into()
}

/// The container, with the namespace from `NAMESPACE/ID` or from `--namespace`.
///
/// # Errors
/// Usage, when both name one and they differ.
pub fn container(arg: ContainerArg, namespace: Option<&str>) -> Result<v1::ContainerRef, Error> {
    match (arg.namespace, namespace) {
        (Some(own), Some(flag)) if own != flag => Err(Error::Usage(format!(
            "`{own}/{}` and --namespace {flag} name two namespaces: give one of them",
            arg.id
        ))),
        (own, flag) => {
            let namespace = own.or(flag.map(str::to_owned)).unwrap_or_default();
            Ok(v1::ContainerRef { id: arg.id, namespace })
        }
    }
}

/// The first message of a build: what the command line says, and for the rest what the file declares. `place` is where
/// a field could be declared.
///
/// # Errors
/// Usage, when the name or the version is nowhere, or an annotation or variable is given twice.
pub fn build_header(args: &BuildArgs, file: Declaration, place: &str) -> Result<v1::BuildHeader, Error> {
    let given = |option: &str, typed: &Option<String>, declared: Option<Filled>| {
        typed.clone().or(declared.map(|text| text.0)).ok_or_else(|| {
            Error::Usage(format!("no {option} is given: pass --{option}, or write `{option}` in {place}"))
        })
    };
    let amounts =
        |all: BTreeMap<String, Amount>| all.into_iter().map(|(key, amount)| (key, amount.0)).collect();
    Ok(v1::BuildHeader {
        name: given("name", &args.name, file.name)?,
        version: given("version", &args.version, file.version)?,
        default_target: args.target.clone().or(file.target.map(|t| t.0)).unwrap_or_default(),
        default_mode: mode(args.mode.or(file.mode)),
        annotations: pairs("annotation", &args.annotations, file.annotations)?,
        requires: requires(&args.requires, file.requires),
        environment: pairs("variable", &args.environment, file.environment)?,
        resources: amounts(file.resources),
        caps: amounts(file.caps),
        devices: file.devices,
        seccomp: seccomp(args, file.seccomp),
        tags: args.tags.clone(),
        base: None,
        image: args.source.image.as_ref().map(|reference| v1::BuildImage {
            reference: reference.clone(),
            namespace: args.image_namespace.clone().unwrap_or_default(),
        }),
    })
}

/// The level of the command line in place of the file's; what either denies besides is denied.
fn seccomp(args: &BuildArgs, file: Seccomp) -> Option<v1::Seccomp> {
    let level = args.seccomp.clone().or(file.level.map(|level| level.0)).unwrap_or_default();
    let deny: Vec<String> = file.deny.into_iter().chain(args.deny.iter().cloned()).collect();
    (!level.is_empty() || !deny.is_empty()).then_some(v1::Seccomp { level, deny })
}

/// The file's pairs, and over them those of the command line.
fn pairs(
    what: &str,
    typed: &[KeyValue],
    declared: BTreeMap<String, String>,
) -> Result<HashMap<String, String>, Error> {
    let mut own = HashMap::new();
    for pair in typed {
        if own.insert(pair.key.clone(), pair.value.clone()).is_some() {
            return Err(Error::Usage(format!("{what} `{}` is given twice", pair.key)));
        }
    }
    let mut all: HashMap<_, _> = declared.into_iter().collect();
    all.extend(own);
    Ok(all)
}

/// The file's requirements, but of capsules that the command line has something to say about; then that.
fn requires(typed: &[String], declared: Vec<String>) -> Vec<String> {
    let named: Vec<_> = typed.iter().map(|requirement| required_name(requirement)).collect();
    let kept = declared.into_iter().filter(|requirement| !named.contains(&required_name(requirement)));
    kept.chain(typed.iter().cloned()).collect()
}

/// The capsule in `NAME RANGE`. Whether it is a name is for capsuled to say.
fn required_name(requirement: &str) -> &str {
    let text = requirement.trim_start();
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && !"._-".contains(c));
    &text[..end.unwrap_or(text.len())]
}

/// An attach of one or several capsules.
///
/// # Errors
/// Usage, when `--target` is given with several capsules or the namespaces differ.
pub fn attach(
    args: AttachArgs,
    locked: Option<Lock>,
    namespace: Option<&str>,
) -> Result<v1::AttachRequest, Error> {
    if args.target.is_some() && args.capsules.len() > 1 {
        return Err(Error::Usage(format!(
            "--target places one capsule and {} are named: attach them one by one, or leave each at its default",
            args.capsules.len()
        )));
    }
    let target = args.target.unwrap_or_default();
    let writable = writable(args.writable, args.capsules.len())?;
    let resources = resources(&args.limits, args.capsules.len())?;
    let spec = |capsule| v1::AttachmentSpec {
        target: target.clone(),
        mode: mode(args.mode),
        writable: writable.clone(),
        resources: resources.clone(),
        ..unplaced(capsule)
    };
    let specs: Vec<_> = match locked {
        Some(lock) => lock.specs(),
        None => args.capsules.into_iter().map(spec).collect(),
    };
    if specs.is_empty() && resources.is_some() {
        return Err(Error::Usage("--grant and --cap are of a capsule: name one".to_owned()));
    }
    if specs.is_empty() && (!target.is_empty() || args.mode.is_some() || writable.is_some()) {
        let what = "--target, --mode, --writable and --persist are of a capsule: name one beside the devices";
        return Err(Error::Usage(what.to_owned()));
    }
    let container = Some(container(args.container, namespace)?);
    Ok(v1::AttachRequest { specs, container, devices: args.devices, for_pod: false })
}

/// Whether the capsule can be written to.
///
/// # Errors
/// Usage, when it is several, or there is a size of nothing.
fn writable(args: WritableArgs, capsules: usize) -> Result<Option<v1::Writable>, Error> {
    let WritableArgs { writable, persist, size } = args;
    let size = size.map(|size| size.as_u64());
    match (writable || persist.is_some(), capsules) {
        (false, _) if size.is_some() => Err(Error::Usage(
            "--size is of what is written: give --writable or --persist NAME too".to_owned(),
        )),
        (false, _) => Ok(None),
        (true, 2..) => Err(Error::Usage(format!(
            "--writable and --persist are for one capsule and {capsules} are named: attach it by itself"
        ))),
        _ if size == Some(0) => Err(Error::Usage("--size 0 holds nothing: give more".to_owned())),
        (true, _) => {
            Ok(Some(v1::Writable { persist: persist.unwrap_or_default(), size: size.unwrap_or_default() }))
        }
    }
}

/// What is said of limits; nothing where nothing is.
///
/// # Errors
/// Usage, when it is of several capsules, or one limit is given twice.
fn resources(args: &LimitArgs, capsules: usize) -> Result<Option<v1::Resources>, Error> {
    let grants = pairs("grant", &args.grants, BTreeMap::new())?;
    let caps = pairs("cap", &args.caps, BTreeMap::new())?;
    if grants.is_empty() && caps.is_empty() {
        return Ok(None);
    }
    if capsules > 1 {
        return Err(Error::Usage(format!(
            "--grant and --cap are for one capsule and {capsules} are named: attach it by itself"
        )));
    }
    Ok(Some(v1::Resources { grants, caps }))
}

/// A commit.
///
/// # Errors
/// Usage, when the namespaces differ, or a capsule is named beside a name.
pub fn commit(args: CommitArgs, namespace: Option<&str>) -> Result<v1::CommitRequest, Error> {
    let CommitArgs { container: of, capsule, target, upper, version, tags } = args;
    let of = match (of, capsule, upper) {
        (Some(of), Some(capsule), None) => Of::Attachment(v1::AttachmentRef {
            container: Some(container(of, namespace)?),
            capsule: capsule.0,
            target: target.unwrap_or_default(),
        }),
        (None, None, Some(upper)) => Of::Upper(upper),
        _ => return Err(Error::Usage("name a container and a capsule, or --upper NAME".to_owned())),
    };
    Ok(v1::CommitRequest { version, tags, of: Some(of) })
}

/// A capsule, with the rest as it says itself.
fn unplaced(capsule: CapsuleRef) -> v1::AttachmentSpec {
    v1::AttachmentSpec {
        capsule: capsule.name,
        version: capsule.version.unwrap_or_default(),
        ..v1::AttachmentSpec::default()
    }
}

/// A plan.
///
/// # Errors
/// Usage, when the namespaces differ.
pub fn resolve(
    capsules: Vec<CapsuleRef>,
    arg: Option<ContainerArg>,
    namespace: Option<&str>,
) -> Result<v1::ResolveRequest, Error> {
    let container = arg.map(|arg| container(arg, namespace)).transpose()?;
    Ok(v1::ResolveRequest { container, specs: capsules.into_iter().map(unplaced).collect() })
}

/// The plan of an attach.
pub fn dry_run(attach: v1::AttachRequest) -> v1::ResolveRequest {
    v1::ResolveRequest { container: attach.container, specs: attach.specs }
}

/// An upgrade of one or several capsules.
///
/// # Errors
/// Usage, when `--target` is given with several capsules or the namespaces differ.
pub fn upgrade(args: UpgradeArgs, namespace: Option<&str>) -> Result<v1::UpgradeRequest, Error> {
    let timeout = args.health_timeout.map(prost_types::Duration::try_from).transpose();
    let timeout = timeout.map_err(|_| Error::Usage("--health-timeout is too long".to_owned()))?;
    let health = args.wait_healthy.map(|command| v1::HealthCheck { args: command.0, timeout });
    let named = args.capsules.into_iter().map(|c| (c.name, c.version.unwrap_or_default()));
    Ok(v1::UpgradeRequest {
        container: Some(container(args.container, namespace)?),
        specs: moves(named, args.target)?,
        health,
        dry_run: args.dry_run,
    })
}

/// A rollback of one or several capsules.
///
/// # Errors
/// As [`upgrade`].
pub fn rollback(args: RollbackArgs, namespace: Option<&str>) -> Result<v1::RollbackRequest, Error> {
    let named = args.capsules.into_iter().map(|c| (c.0, String::new()));
    Ok(v1::RollbackRequest {
        container: Some(container(args.container, namespace)?),
        specs: moves(named, args.target)?,
    })
}

fn moves(
    named: impl Iterator<Item = (String, String)>,
    target: Option<String>,
) -> Result<Vec<v1::MoveSpec>, Error> {
    let only = target.clone().unwrap_or_default();
    let spec = |(capsule, version)| v1::MoveSpec { capsule, version, target: only.clone() };
    let specs: Vec<_> = named.map(spec).collect();
    if target.is_some() && specs.len() > 1 {
        return Err(Error::Usage(format!(
            "--target names the place of one capsule and {} are named: move them one by one",
            specs.len()
        )));
    }
    Ok(specs)
}

/// A detach.
///
/// # Errors
/// Usage, when the namespaces differ.
pub fn detach(args: DetachArgs, namespace: Option<&str>) -> Result<v1::DetachRequest, Error> {
    let DetachArgs { container: of, capsule, target, devices, lazy, fate } = args;
    Ok(v1::DetachRequest {
        drop: fate.drop,
        keep: fate.keep.unwrap_or_default(),
        container: Some(container(of, namespace)?),
        capsule: capsule.map(|capsule| capsule.0).unwrap_or_default(),
        target: target.unwrap_or_default(),
        lazy,
        devices,
    })
}

/// A watch over events.
///
/// # Errors
/// Usage, when the namespaces differ.
pub fn events(args: EventsArgs, namespace: Option<&str>) -> Result<v1::WatchRequest, Error> {
    let container = args.container.map(|arg| container(arg, namespace)).transpose()?;
    let (id, of) = container.map(|c| (c.id, c.namespace)).unwrap_or_default();
    Ok(v1::WatchRequest {
        after: if args.all { Some(0) } else { args.after },
        no_follow: args.no_follow,
        container: id,
        namespace: if of.is_empty() { namespace.unwrap_or_default().to_owned() } else { of },
        capsule: args.capsule.map(|name| name.0).unwrap_or_default(),
    })
}

/// A listing of attachments: of one container, of one namespace, or all.
///
/// # Errors
/// Usage, when the namespaces differ.
pub fn list_attachments(
    arg: Option<ContainerArg>,
    namespace: Option<&str>,
) -> Result<v1::ListAttachmentsRequest, Error> {
    let container = arg.map(|arg| container(arg, namespace)).transpose()?;
    Ok(v1::ListAttachmentsRequest { container })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use crate::declaration::parse;

    fn arg(id: &str, namespace: Option<&str>) -> ContainerArg {
        ContainerArg { id: id.into(), namespace: namespace.map(Into::into) }
    }

    #[test]
    fn the_namespace_comes_from_either_place() {
        for (own, flag, want) in [
            (None, None, Some("")),
            (Some("a"), None, Some("a")),
            (None, Some("b"), Some("b")),
            (Some("a"), Some("a"), Some("a")),
            (Some("a"), Some("b"), None),
        ] {
            let got = container(arg("c", own), flag).ok().map(|r| r.namespace);
            assert_eq!(got.as_deref(), want, "{own:?} {flag:?}");
        }
    }

    #[test]
    fn a_target_places_one_capsule() {
        let args = |capsules: &[&str]| AttachArgs {
            container: arg("c", None),
            capsules: capsules.iter().map(|c| c.parse().expect("a capsule")).collect(),
            devices: Vec::new(),
            locked: None,
            dry_run: false,
            target: Some("/x".into()),
            mode: None,
            limits: LimitArgs { grants: vec![], caps: vec![] },
            writable: WritableArgs { writable: false, persist: None, size: None },
        };
        let one = attach(args(&["a@1"]), None, None).expect("one capsule");
        assert_eq!((one.specs[0].target.as_str(), one.specs[0].version.as_str()), ("/x", "1"));
        let error = attach(args(&["a", "b"]), None, None).expect_err("two capsules");
        assert_eq!(error.exit_code(), 2);
    }

    /// The header of `build` with these words and this file.
    fn header(words: &[&str], file: &str) -> Result<v1::BuildHeader, Error> {
        let line = ["capsulectl", "build", "d"].into_iter().chain(words.iter().copied());
        let Command::Build(args) = Cli::parse_line(line).expect("a command line").command else {
            panic!("another command");
        };
        build_header(&args, parse(file.as_bytes()).expect("a file"), "`d/capsule.toml`")
    }

    const FILE: &str = "
        name = 'n'
        version = '1'
        target = '/file'
        mode = 'union'
        requires = ['a >=1', 'b', 'cc']
        devices = ['v.com/c=d']
        environment = { A = '1', B = '2' }
        resources = { 'pids.max' = 3 }
        seccomp = { level = 'baseline', deny = ['socket'] }
        annotations = { x = '1', y = '2' }";

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn denied(level: &str, deny: &[&str]) -> Option<v1::Seccomp> {
        let deny = deny.iter().map(|call| (*call).to_owned()).collect();
        Some(v1::Seccomp { level: level.into(), deny })
    }

    #[test]
    fn the_file_says_what_the_line_does_not() {
        let want = v1::BuildHeader {
            name: "n".into(),
            version: "1".into(),
            default_target: "/file".into(),
            default_mode: v1::Mode::Union.into(),
            annotations: map(&[("x", "1"), ("y", "2")]),
            requires: vec!["a >=1".into(), "b".into(), "cc".into()],
            environment: map(&[("A", "1"), ("B", "2")]),
            resources: map(&[("pids.max", "3")]),
            devices: vec!["v.com/c=d".into()],
            seccomp: denied("baseline", &["socket"]),
            ..v1::BuildHeader::default()
        };
        assert_eq!(header(&[], FILE).expect("a header"), want);
    }

    #[test]
    fn the_line_wins_over_the_file() {
        let words = ["--name", "m", "--version", "2", "--target", "/line", "--mode", "ro"];
        let more =
            ["--env", "B=", "--env", "C=4", "--annotation", "y=5", "--require", "c", "--require", "a<3"];
        let tags = ["--tag", "stable", "--tag", "next", "--seccomp", "restricted", "--deny", "bind"];
        let want = v1::BuildHeader {
            name: "m".into(),
            version: "2".into(),
            default_target: "/line".into(),
            default_mode: v1::Mode::Ro.into(),
            annotations: map(&[("x", "1"), ("y", "5")]),
            requires: vec!["b".into(), "cc".into(), "c".into(), "a<3".into()],
            environment: map(&[("A", "1"), ("B", ""), ("C", "4")]),
            resources: map(&[("pids.max", "3")]),
            devices: vec!["v.com/c=d".into()],
            seccomp: denied("restricted", &["socket", "bind"]),
            tags: vec!["stable".into(), "next".into()],
            ..v1::BuildHeader::default()
        };
        assert_eq!(header(&[&words[..], &more, &tags].concat(), FILE).expect("a header"), want);
    }

    #[test]
    fn what_is_wrong_usage_of_build() {
        for (words, file, want) in [
            (&["--version", "1"][..], "", "pass --name, or write `name` in `d/capsule.toml`"),
            (&["--name", "n"], "mode = 'ro'", "pass --version, or write `version` in `d/capsule.toml`"),
            (&["--annotation", "a=1", "--annotation", "a=2"], FILE, "annotation `a` is given twice"),
            (&["--env", "a=1", "--env", "a=1"], FILE, "variable `a` is given twice"),
        ] {
            let error = header(words, file).expect_err(want);
            assert_eq!(error.exit_code(), 2);
            assert!(error.line().contains(want), "{want}: {}", error.line());
        }
    }
}
