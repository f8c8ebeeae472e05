//! A Kubernetes node's programs for machines. Debian has etcd, `kubectl` and network plugins; what makes the cluster and the node is
//! built as tools of a Go module of ours (`integration/kubernetes`), with Debian's Go; and so is Helm, of another one
//! (`integration/helm`), for it needs other libraries of Kubernetes.
//!
//! Pinned as a whole: all modules by the sums in `go.sum`, Debian's packages and Go by Debian's signature. Kubernetes' own module
//! replaces its libraries by folders that are not part of it; `go.mod` names the modules that these are published as, all of
//! the same release. Another release: change both versions there and [`VERSION`], and run `go mod tidy` there.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::apt::Apt;
use crate::go::Go;
use crate::rootfs::{self, Suite};
use crate::workspace::{Workspace, output_of, remove_tree};

/// The release; `kubectl` may be of the one before or after.
pub const VERSION: &str = "v1.37.2";
/// Helm's release.
pub const HELM: &str = "v3.22.0";

/// A Go module of ours, of which nothing is built but its tools.
struct Module {
    /// What is built is kept by this name.
    name: &'static str,
    files: [(&'static str, &'static str); 2],
    /// What `go.mod` has as tools.
    programs: &'static [&'static str],
    /// How a program says which release it is, and what it says then begins so.
    says: [&'static str; 2],
    version: &'static str,
}

const KUBERNETES: Module = Module {
    name: "programs",
    files: [
        ("go.mod", include_str!("../kubernetes/go.mod")),
        ("go.sum", include_str!("../kubernetes/go.sum")),
    ],
    programs: &["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet"],
    says: ["--version", "Kubernetes "],
    version: VERSION,
};
const CHARTS: Module = Module {
    name: "helm",
    files: [("go.mod", include_str!("../helm/go.mod")), ("go.sum", include_str!("../helm/go.sum"))],
    programs: &["helm"],
    says: ["version", "version.BuildInfo{Version:\""],
    version: HELM,
};
/// The release whose Go builds them, and whose machines run them.
const SUITE: Suite = Suite::Forky;
/// Debian's packages and what is taken from them.
const PACKAGES: [(&str, &str); 3] = [
    ("etcd-server", "usr/bin/etcd"),
    ("kubectl", "usr/bin/kubectl"),
    ("containernetworking-plugins", "usr/lib/cni"),
];

/// Where machines have them.
const AT: &str = "/peers";

/// Whether a scenario uses them.
pub fn needed_by(scenario: &str) -> bool {
    scenario.starts_with("kubernetes")
}

/// The folder with the programs and the plugins, in `cni`. Half an hour the first time.
pub fn ready(workspace: &Workspace) -> Result<PathBuf> {
    let modules = [KUBERNETES, CHARTS];
    let built = modules.iter().map(|module| built(workspace, module)).collect::<Result<Vec<_>>>()?;
    let rootfs = rootfs::ready(workspace, SUITE)?;
    let recipe = format!("{built:?} {} {PACKAGES:?}", rootfs.display());
    workspace.cached("kubernetes", "node", &recipe, |folder| {
        let scratch = folder.with_extension("scratch");
        remove_tree(&scratch)?;
        for part in [folder, &scratch] {
            fs::create_dir_all(part).with_context(|| format!("create {}", part.display()))?;
        }
        let keyring = rootfs::keyring(&scratch.join("keyring"))?;
        let apt = Apt::of(&rootfs, SUITE.name(), keyring.as_deref(), &scratch.join("apt"))?;
        for (package, part) in PACKAGES {
            let unpacked = scratch.join(package);
            let deb = apt.download(package)?;
            output_of(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacked))?;
            output_of(Command::new("cp").arg("-a").arg(unpacked.join(part)).arg(folder))?;
        }
        for (module, built) in modules.iter().zip(&built) {
            for program in module.programs {
                let at = folder.join(program);
                fs::hard_link(built.join(program), &at).with_context(|| format!("link {}", at.display()))?;
            }
        }
        remove_tree(&scratch)
    })
}

/// The folder with what is built: kept apart, for it takes so long.
fn built(workspace: &Workspace, module: &Module) -> Result<PathBuf> {
    let Module { name, files, programs, says: [ask, says], version } = module;
    let recipe = format!("{version} {files:?} {}", SUITE.name());
    workspace.cached("kubernetes", name, &recipe, |folder| {
        eprintln!("building {}: Kubernetes takes half an hour, once", programs.join(", "));
        let scratch = folder.with_extension("scratch");
        remove_tree(&scratch)?;
        let module = scratch.join("module");
        for part in [folder, &module] {
            fs::create_dir_all(part).with_context(|| format!("create {}", part.display()))?;
        }
        for (file, text) in files {
            fs::write(module.join(file), text).with_context(|| format!("write {file}"))?;
        }
        let keyring = rootfs::keyring(&scratch.join("keyring"))?;
        let go = Go::fetch(SUITE, &scratch, keyring.as_deref())?;
        let mut build = go.command(&module);
        build.args(["build", "-mod=readonly", "-ldflags", &named()?, "-o"]).arg(folder).arg("tool");
        output_of(&mut build).with_context(|| format!("build {name}"))?;
        for program in *programs {
            let said = output_of(Command::new(folder.join(program)).arg(ask))?;
            let release = said.trim().strip_prefix(says).unwrap_or_default();
            ensure!(release.starts_with(version), "{program} calls itself {said:?}");
        }
        remove_tree(&scratch)
    })
}

/// What the linker is told: the release that the programs say they are, and no symbols.
fn named() -> Result<String> {
    let mut parts = VERSION.trim_start_matches('v').split('.');
    let (major, minor) = parts.next().zip(parts.next()).context("a release is MAJOR.MINOR.PATCH")?;
    let set = [("gitVersion", VERSION), ("gitMajor", major), ("gitMinor", minor)]
        .map(|(name, value)| format!("-X k8s.io/component-base/version.{name}={value}"));
    // As Helm's own Makefile does it; it holds charts against the release otherwise that its sources name.
    let helm = format!(
        "-X helm.sh/helm/v3/internal/version.version={HELM} -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor={major} \
         -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor={minor}"
    );
    Ok(format!("-s -w {helm} {}", set.join(" ")))
}

/// Puts them where a machine's programs look for them.
pub fn install() -> Result<()> {
    fs::create_dir_all("/opt/cni").context("create /opt/cni")?;
    let built = [KUBERNETES, CHARTS].into_iter().flat_map(|module| module.programs.iter().copied());
    let links = built.chain(["etcd", "kubectl"]).map(|name| (name, format!("/usr/local/bin/{name}")));
    for (from, at) in links.chain([("cni", "/opt/cni/bin".to_owned())]) {
        symlink(Path::new(AT).join(from), &at).with_context(|| format!("link {at}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_is_of_this_release_as_a_whole() {
        let text = KUBERNETES.files[0].1;
        assert!(text.contains(&format!("k8s.io/kubernetes {VERSION} ")), "{text}");
        let libraries = VERSION.replacen("v1.", "v0.", 1);
        let replaced: Vec<&str> = text.lines().filter(|line| line.contains(" => ")).collect();
        assert!(replaced.len() > 20);
        for line in replaced {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            assert_eq!(words, [words[0], "=>", words[0], &libraries]);
        }
        assert!(CHARTS.files[0].1.contains(&format!("helm.sh/helm/v3 {HELM} ")));
    }
}
