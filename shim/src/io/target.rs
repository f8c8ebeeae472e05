//! Where a process' streams go, as containerd asked: FIFOs, a log file, or a logging program.
//!
//! The URIs are those of containerd's clients (`pkg/cio/io.go`: `LogFile`, `BinaryIO`): `file:///PATH` and
//! `binary:///PROGRAM?KEY=VALUE…`, from containerd 2.3 on also `binary-v2:`. A log URI is for the whole output: standard error
//! has the same, or nothing.

use std::path::PathBuf;

use super::IoError;

/// Where a process' streams go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdio {
    /// A FIFO, or nothing.
    pub stdin: Option<PathBuf>,
    /// Standard output and error, or a terminal's output.
    pub output: Target,
    /// Whether the process has a terminal.
    pub terminal: bool,
    /// Standard input, output and error in containerd's words, to be told back.
    pub asked: [String; 3],
}

/// Where output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A FIFO each, or nothing. With a terminal the second is not used.
    Fifos {
        /// Of standard output.
        stdout: Option<PathBuf>,
        /// Of standard error.
        stderr: Option<PathBuf>,
    },
    /// Both are appended to a file.
    File(PathBuf),
    /// Both go to a program of their own.
    Program(Program),
}

/// A logging program, in the way that containerd starts one (`process/io_util.go`, `NewBinaryCmd`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its file.
    pub path: PathBuf,
    /// The URI's keys, each followed by its value.
    pub args: Vec<String>,
    /// It has to say that it is ready (`binary-v2:`); one that only closes the descriptor for that has failed.
    pub says_ready: bool,
}

impl Default for Target {
    fn default() -> Self {
        Self::Fifos { stdout: None, stderr: None }
    }
}

impl Stdio {
    /// # Errors
    /// [`IoError::Uri`] for anything but an absolute path, a log URI or nothing; [`IoError::StderrUri`].
    pub fn parse(stdin: &str, stdout: &str, stderr: &str, terminal: bool) -> Result<Self, IoError> {
        let asked = [stdin, stdout, stderr].map(str::to_owned);
        let stdin = parse_fifo(stdin)?;
        let Some((scheme, rest)) = stdout.split_once("://") else {
            let output = Target::Fifos { stdout: parse_fifo(stdout)?, stderr: parse_fifo(stderr)? };
            return Ok(Self { stdin, output, terminal, asked });
        };
        if !stderr.is_empty() && stderr != stdout {
            return Err(IoError::StderrUri(stderr.to_owned()));
        }
        let unknown = || IoError::Uri(stdout.to_owned());
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = decode_path(path).ok_or_else(unknown)?;
        let output = match scheme {
            "file" => Target::File(path),
            "binary" | "binary-v2" => {
                let (args, says_ready) = (decode_query(query), scheme == "binary-v2");
                Target::Program(Program { path, args, says_ready })
            }
            _ => return Err(unknown()),
        };
        Ok(Self { stdin, output, terminal, asked })
    }
}

fn parse_fifo(text: &str) -> Result<Option<PathBuf>, IoError> {
    match text {
        "" => Ok(None),
        text if text.starts_with('/') => Ok(Some(PathBuf::from(text))),
        text => Err(IoError::Uri(text.to_owned())),
    }
}

/// An absolute path with its `%XX` resolved.
fn decode_path(text: &str) -> Option<PathBuf> {
    let path = percent_encoding::percent_decode_str(text).decode_utf8().ok()?;
    (path.starts_with('/') && !path.contains('\0')).then(|| PathBuf::from(path.into_owned()))
}

/// Each key and its first value, in the order of the URI.
fn decode_query(query: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut args = Vec::new();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        if !keys.contains(&key) {
            args.extend([key.clone().into_owned(), value.into_owned()]);
            keys.push(key);
        }
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(stdout: &str, stderr: &str) -> Result<Target, IoError> {
        Stdio::parse("", stdout, stderr, false).map(|stdio| stdio.output)
    }

    fn fifos(stdout: Option<&str>, stderr: Option<&str>) -> Target {
        Target::Fifos { stdout: stdout.map(PathBuf::from), stderr: stderr.map(PathBuf::from) }
    }

    #[test]
    fn streams_are_paths_or_nothing() {
        assert_eq!(output("", "").unwrap(), fifos(None, None));
        assert_eq!(output("/run/out", "").unwrap(), fifos(Some("/run/out"), None));
        assert_eq!(output("", "/run/err").unwrap(), fifos(None, Some("/run/err")));
        let stdio = Stdio::parse("/run/in", "/run/out", "", true).unwrap();
        assert_eq!(stdio.stdin, Some("/run/in".into()));
        assert!(stdio.terminal);
    }

    #[test]
    fn log_uris_are_for_the_whole_output() {
        let file = "file:///var/log/a%20b";
        assert_eq!(output(file, file).unwrap(), Target::File("/var/log/a b".into()));
        assert_eq!(output(file, "").unwrap(), Target::File("/var/log/a b".into()));
        for stderr in ["/run/err", "file:///var/log/other"] {
            assert!(matches!(output(file, stderr), Err(IoError::StderrUri(uri)) if uri == stderr));
        }
    }

    #[test]
    fn a_program_gets_the_keys_and_values_of_its_uri() {
        for (uri, args) in [
            ("binary:///bin/log", vec![]),
            ("binary:///bin/log?--flag", vec!["--flag", ""]),
            ("binary:///bin/log?b=1&a=x%26y&b=2", vec!["b", "1", "a", "x&y"]),
            ("binary:///bin/log?_INTERNAL=/var/lib/n", vec!["_INTERNAL", "/var/lib/n"]),
        ] {
            let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
            for (version, says_ready) in [("", false), ("-v2", true)] {
                let uri = uri.replacen("binary", &format!("binary{version}"), 1);
                let program = Program { path: "/bin/log".into(), args: Vec::clone(&args), says_ready };
                assert_eq!(output(&uri, &uri).unwrap(), Target::Program(program), "{uri}");
            }
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for uri in [
            "relative",
            "file://relative",
            "http://host/x",
            "file:///a%00b",
            "binary://",
            "binary-v3:///x",
            "file:/x",
        ] {
            assert!(matches!(output(uri, ""), Err(IoError::Uri(refused)) if refused == uri), "{uri}");
        }
        assert!(matches!(Stdio::parse("file:///x", "", "", false), Err(IoError::Uri(_))));
        assert!(matches!(output("", "file:///x"), Err(IoError::Uri(_))));
    }
}
