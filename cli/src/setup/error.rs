//! Why containerd's configuration is not changed.

use std::io;
use std::path::PathBuf;

/// Why a configuration is left as it is. Nothing has been written then.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A file could not be read, or not written.
    #[error("cannot {step} {}: {source}{}", file.display(), hint(source))]
    File {
        /// What was to be done.
        step: &'static str,
        /// The file.
        file: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file is no TOML.
    #[error("{} is no TOML, so containerd cannot read it either: {message}; correct it first", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The parser's words.
        message: String,
    },
    /// A version that is not known here.
    #[error(
        "{} is of version {version}, and setup knows 2 (containerd 1.7 and newer), 3 (2.0 and newer) and 4 (2.3 and newer): merge \
         what docs/setup.md shows by hand",
        file.display()
    )]
    Version {
        /// The file.
        file: PathBuf,
        /// Its version.
        version: String,
    },
    /// No version, which means version 1.
    #[error(
        "{} names no version, which means version 1, with other names of plugins: write `version = 2` at its top, and plugins by \
         their full names (`cri` is `io.containerd.grpc.v1.cri`), or let `containerd config migrate` of containerd 2 do it; then \
         run setup again",
        file.display()
    )]
    NoVersion {
        /// The file.
        file: PathBuf,
    },
    /// A version that the containerd of the machine does not read.
    #[error(
        "{} is of version {version}, which containerd {release} does not read: `containerd config default` shows the version that \
         it has",
        file.display()
    )]
    TooNew {
        /// The file.
        file: PathBuf,
        /// Its version.
        version: i64,
        /// containerd's.
        release: String,
    },
    /// No containerd to be asked.
    #[error(
        "cannot tell which containerd this is for: no program `containerd` is on the path, and none answers; install it first, or \
         name its version as --containerd-version=2.1"
    )]
    NoRelease,
    /// A containerd that is too old or too strange.
    #[error("containerd {0} is none that capsules work with: 1.7 and 2.x are")]
    Release(String),
    /// A form that cannot be added to.
    #[error(
        "{} has {what} in a form (dotted keys, or a table in one line) that setup does not add to: write this there by hand, or \
         give it a header of its own: {wanted}",
        file.display()
    )]
    ByHand {
        /// The file.
        file: PathBuf,
        /// Of what.
        what: String,
        /// What is to be there, in one line.
        wanted: String,
    },
    /// A backup would be taken for configuration.
    #[error(
        "imports = [{pattern:?}] would make containerd read {} too, which setup writes beside its configuration: name only *.toml there",
        file.display()
    )]
    Imported {
        /// The pattern.
        pattern: String,
        /// What it matches.
        file: PathBuf,
    },
    /// An import that is no pattern.
    #[error("{}: imports: {message}", file.display())]
    Pattern {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// Somebody else has changed it in the meantime.
    #[error("{} has changed since it was read: nothing is written; run setup again", file.display())]
    Changed {
        /// The file.
        file: PathBuf,
    },
    /// The record of an earlier setup makes no sense.
    #[error("{} is no record of setup: {message}; move it away to go on without it", file.display())]
    Record {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// Nobody can be asked.
    #[error(
        "whether to write this cannot be asked where standard input is no terminal: --yes writes without asking, --dry-run shows \
         what would be written"
    )]
    NoTerminal,
    /// The answer was no.
    #[error("nothing is written")]
    Declined,
    /// Some of what was added is no longer as it was added.
    #[error("{} kept: {}; take out by hand what is not wanted any more", if .0.len() == 1 { "this was changed since, and is" } else { "these were changed since, and are" }, .0.join("; "))]
    Kept(Vec<String>),
}

impl SetupError {
    /// For a failure with a file.
    pub fn file(step: &'static str, file: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let file = file.to_owned();
        move |source| Self::File { step, file, source }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run it as root",
        _ => "",
    }
}
