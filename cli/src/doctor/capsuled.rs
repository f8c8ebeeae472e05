//! capsuled: its program, configuration, socket and version.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use capsule_proto::capsule::v1;

use super::Finding;
use crate::client::Client;
use crate::error::Error;
use crate::host::{Settings, find, judged, own_path};
use crate::trace::Caller;

/// What is found at capsuled's socket.
#[derive(Debug)]
pub struct Capsuled {
    /// Mode and owner; an error when there is none, or it cannot be looked at.
    socket: io::Result<(u32, u32)>,
    /// What capsuled says.
    pub answer: Result<Answer, Error>,
}

/// What a capsuled says of itself.
#[derive(Debug, Default)]
pub struct Answer {
    /// Its version.
    pub version: Option<String>,
    /// The devices that it knows, by name.
    pub devices: Vec<String>,
    /// What is wrong with CDI specs: file and reason.
    pub problems: Vec<(String, String)>,
}

/// capsuled's program: on the path, or beside this one.
pub fn program() -> Option<PathBuf> {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("capsuled"));
    find("capsuled", &own_path()).ok().flatten().or_else(|| beside().filter(|program| program.exists()))
}

/// Its configuration, as capsuled itself judges it.
pub async fn configuration(program: Option<&Path>, file: &Path) -> Finding {
    const CHECK: &str = "capsuled-config";
    let name = file.display();
    let Some(program) = program else {
        return Finding::error(
            CHECK,
            "capsuled is not installed",
            "install it on the PATH, beside capsulectl",
        );
    };
    if let Err(error) = std::fs::File::open(file) {
        return match error.kind() {
            io::ErrorKind::NotFound => Finding::ok(CHECK, format!("no {name}: the defaults apply")),
            io::ErrorKind::PermissionDenied => {
                Finding::skipped(CHECK, format!("{name}: reading it needs root"))
            }
            _ => Finding::error(CHECK, format!("{name}: {error}"), "capsuled cannot start with it"),
        };
    }
    match judged(program, file).await {
        Ok(ran) if ran.ok => Finding::ok(CHECK, format!("{name} has no mistakes")),
        Ok(ran) => {
            let mistakes: Vec<&str> = ran.err.lines().collect();
            let first = mistakes.first().copied().unwrap_or_default();
            let more = match mistakes.len() {
                0 | 1 => String::new(),
                n => format!(" (and {} more: `capsuled --check-config`)", n - 1),
            };
            Finding::error(CHECK, format!("{first}{more}"), "correct it: capsuled does not start with it")
        }
        Err(reason) => Finding::skipped(CHECK, format!("{} --check-config: {reason}", program.display())),
    }
}

impl Capsuled {
    /// Looks at the socket, and asks who listens.
    pub async fn read(address: &Path) -> Self {
        let socket =
            std::fs::metadata(address).map(|found| (found.permissions().mode() & 0o777, found.uid()));
        Self { socket, answer: ask(address).await }
    }

    /// The socket, and the version of who listens there.
    pub fn judge(&self, address: &Path, settings: &Settings) -> Vec<Finding> {
        const CHECK: &str = "capsuled";
        let name = address.display();
        if address != settings.socket {
            return vec![Finding::error(
                CHECK,
                format!(
                    "capsulectl looks at {name}, and capsuled's configuration has {}",
                    settings.socket.display()
                ),
                "set CAPSULE_ADDRESS, or give --address",
            )];
        }
        let answer = match &self.answer {
            Ok(answer) => answer,
            Err(Error::Connect { source, .. }) => {
                return vec![match source.kind() {
                    io::ErrorKind::PermissionDenied => {
                        Finding::skipped(CHECK, format!("{name}: asking capsuled needs root"))
                    }
                    io::ErrorKind::NotFound => Finding::error(
                        CHECK,
                        format!("no socket at {name}"),
                        "start it: `systemctl enable --now capsuled.socket capsuled`",
                    ),
                    _ => Finding::error(
                        CHECK,
                        format!("nobody answers at {name} ({source})"),
                        "see `systemctl status capsuled`, and start it",
                    ),
                }];
            }
            Err(error) => {
                return vec![Finding::error(CHECK, error.line(), "see `systemctl status capsuled`")];
            }
        };
        let mut findings = vec![self.access(address)];
        findings.push(version(answer.version.as_deref(), env!("CARGO_PKG_VERSION")));
        findings
    }

    fn access(&self, address: &Path) -> Finding {
        const CHECK: &str = "capsuled";
        let name = address.display();
        match &self.socket {
            Ok((mode, owner)) if mode & 0o077 != 0 || *owner != 0 => Finding::warning(
                CHECK,
                format!("answers at {name}, which has the mode {mode:04o} and belongs to user {owner}"),
                "who can write to it can do what root can: `chmod 0600` and `chown root` it",
            ),
            Ok((mode, _)) => Finding::ok(CHECK, format!("answers at {name} (root's, mode {mode:04o})")),
            Err(error) => Finding::skipped(CHECK, format!("{name}: {error}")),
        }
    }
}

fn version(capsuled: Option<&str>, own: &str) -> Finding {
    const CHECK: &str = "capsuled-version";
    match capsuled {
        Some(version) if version == own => Finding::ok(CHECK, format!("{version}, as capsulectl")),
        Some(version) => Finding::warning(
            CHECK,
            format!("capsuled is {version}, and capsulectl {own}"),
            "install both of one release, and `systemctl restart capsuled`",
        ),
        None => Finding::warning(
            CHECK,
            format!("capsuled does not say which it is, and capsulectl is {own}"),
            "install both of one release, and `systemctl restart capsuled`",
        ),
    }
}

async fn ask(address: &Path) -> Result<Answer, Error> {
    let client = Client::connect(address, Caller::default()).await?;
    let metrics = client.metrics().read_metrics(v1::ReadMetricsRequest {}).await?.into_inner().text;
    let devices = client.devices().list_devices(v1::ListDevicesRequest {}).await?.into_inner();
    Ok(Answer {
        version: version_in(&metrics).map(str::to_owned),
        devices: devices.devices.into_iter().map(|device| device.name).collect(),
        problems: devices.problems.into_iter().map(|problem| (problem.path, problem.reason)).collect(),
    })
}

/// From `capsuled_build_info{version="0.1.0"} 1`.
fn version_in(metrics: &str) -> Option<&str> {
    let line = metrics.lines().find_map(|line| line.strip_prefix("capsuled_build_info{version=\""))?;
    line.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn settings() -> Settings {
        Settings::read("/no/such/file".as_ref())
    }

    fn found(socket: io::Result<(u32, u32)>, answer: Result<Answer, Error>) -> Vec<Finding> {
        Capsuled { socket, answer }.judge(&settings().socket, &settings())
    }

    fn silent(kind: io::ErrorKind) -> Finding {
        let error = || Error::Connect { address: "/x".into(), source: kind.into() };
        found(Err(kind.into()), Err(error())).remove(0)
    }

    #[test]
    fn a_capsuled_that_does_not_answer_is_a_finding() {
        assert_eq!(silent(io::ErrorKind::NotFound).state, State::Error);
        assert!(silent(io::ErrorKind::NotFound).found.contains("no socket"));
        assert_eq!(silent(io::ErrorKind::ConnectionRefused).state, State::Error);
        assert_eq!(silent(io::ErrorKind::PermissionDenied).state, State::Skipped);
    }

    #[test]
    fn who_may_call_it_and_its_version_are_judged() {
        let own = env!("CARGO_PKG_VERSION");
        let answer = |version: &str| Ok(Answer { version: Some(version.to_owned()), ..Answer::default() });
        let states =
            |findings: Vec<Finding>| findings.iter().map(|finding| finding.state).collect::<Vec<_>>();
        assert_eq!(states(found(Ok((0o600, 0)), answer(own))), [State::Ok, State::Ok]);
        assert_eq!(states(found(Ok((0o666, 0)), answer("0.0.9"))), [State::Warning, State::Warning]);
        assert_eq!(states(found(Ok((0o600, 7)), answer(own))), [State::Warning, State::Ok]);
        assert_eq!(version(None, own).state, State::Warning);
    }

    #[test]
    fn another_socket_than_capsuleds_is_an_error() {
        let capsuled = Capsuled { socket: Ok((0o600, 0)), answer: Ok(Answer::default()) };
        let [finding] = &capsuled.judge(Path::new("/elsewhere.sock"), &settings())[..] else { panic!() };
        assert_eq!(finding.state, State::Error);
        assert!(
            finding.found.contains("/elsewhere.sock") && finding.found.contains("/run/capsule/capsuled.sock")
        );
    }

    #[test]
    fn the_version_is_among_the_metrics() {
        let metrics = "# TYPE capsuled_build info\ncapsuled_build_info{version=\"0.1.0\"} 1\n# EOF\n";
        assert_eq!(version_in(metrics), Some("0.1.0"));
        assert_eq!(version_in("# EOF\n"), None);
    }
}
