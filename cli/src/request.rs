//! From the command line to the wire: pure, one function per call.

use capsule_proto::capsule::v1;

use crate::args::{AttachArgs, AttachmentArgs, BuildArgs, CapsuleRef, ContainerArg, ModeArg};
use crate::error::Error;

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

/// The first message of a build.
///
/// # Errors
/// Usage, when an annotation is given twice.
pub fn build_header(args: &BuildArgs) -> Result<v1::BuildHeader, Error> {
    let mut header = v1::BuildHeader {
        name: args.name.clone(),
        version: args.version.clone(),
        default_target: args.target.clone().unwrap_or_default(),
        default_mode: mode(args.mode),
        ..v1::BuildHeader::default()
    };
    for pair in &args.annotations {
        if header.annotations.insert(pair.key.clone(), pair.value.clone()).is_some() {
            return Err(Error::Usage(format!("annotation `{}` is given twice", pair.key)));
        }
    }
    Ok(header)
}

/// An attach of one or several capsules.
///
/// # Errors
/// Usage, when `--target` is given with several capsules or the namespaces differ.
pub fn attach(args: AttachArgs, namespace: Option<&str>) -> Result<v1::AttachRequest, Error> {
    if args.target.is_some() && args.capsules.len() > 1 {
        return Err(Error::Usage(format!(
            "--target places one capsule and {} are named: attach them one by one, or leave each at its default",
            args.capsules.len()
        )));
    }
    let target = args.target.unwrap_or_default();
    let specs = args.capsules.into_iter().map(|capsule| v1::AttachmentSpec {
        capsule: capsule.name,
        version: capsule.version.unwrap_or_default(),
        target: target.clone(),
        mode: mode(args.mode),
    });
    Ok(v1::AttachRequest { specs: specs.collect(), container: Some(container(args.container, namespace)?) })
}

/// An upgrade.
///
/// # Errors
/// Usage, when the namespaces differ.
pub fn upgrade(
    arg: ContainerArg,
    capsule: CapsuleRef,
    target: Option<String>,
    namespace: Option<&str>,
) -> Result<v1::UpgradeRequest, Error> {
    Ok(v1::UpgradeRequest {
        container: Some(container(arg, namespace)?),
        capsule: capsule.name,
        version: capsule.version.unwrap_or_default(),
        target: target.unwrap_or_default(),
    })
}

/// A rollback.
///
/// # Errors
/// Usage, when the namespaces differ.
pub fn rollback(args: AttachmentArgs, namespace: Option<&str>) -> Result<v1::RollbackRequest, Error> {
    Ok(v1::RollbackRequest {
        container: Some(container(args.container, namespace)?),
        capsule: args.capsule.0,
        target: args.target.unwrap_or_default(),
    })
}

/// A detach.
///
/// # Errors
/// Usage, when the namespaces differ.
pub fn detach(args: AttachmentArgs, lazy: bool, namespace: Option<&str>) -> Result<v1::DetachRequest, Error> {
    Ok(v1::DetachRequest {
        container: Some(container(args.container, namespace)?),
        capsule: args.capsule.0,
        target: args.target.unwrap_or_default(),
        lazy,
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
            target: Some("/x".into()),
            mode: None,
        };
        let one = attach(args(&["a@1"]), None).expect("one capsule");
        assert_eq!((one.specs[0].target.as_str(), one.specs[0].version.as_str()), ("/x", "1"));
        let error = attach(args(&["a", "b"]), None).expect_err("two capsules");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn an_annotation_is_given_once() {
        let args = |pairs: &[&str]| BuildArgs {
            dir: ".".into(),
            name: "n".into(),
            version: "1".into(),
            target: None,
            mode: Some(ModeArg::Union),
            annotations: pairs.iter().map(|p| p.parse().expect("a pair")).collect(),
            keep_owner: false,
            source_date_epoch: 0,
        };
        let header = build_header(&args(&["a=1", "b=2"])).expect("two keys");
        assert_eq!(header.annotations["b"], "2");
        assert_eq!(header.default_mode(), v1::Mode::Union);
        assert!(build_header(&args(&["a=1", "a=2"])).is_err());
    }
}
