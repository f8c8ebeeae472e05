//! Who asks a registry: a name and password typed for it, or what Docker's configuration file has.
//!
//! Credential helpers (`credsStore`, `credHelpers`) are not asked: programs that the file names would run as root.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;
use std::{env, fs, io};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use capsule_proto::capsule::v1;
use serde::Deserialize;

use crate::args::LoginArgs;
use crate::error::Error;

const PASSWORD: &str = "CAPSULE_PASSWORD";

/// The credentials for a call about `reference`.
///
/// # Errors
/// Wrong usage, when there is a name and no password.
pub fn read(login: LoginArgs, reference: &str) -> Result<Vec<v1::Credential>, Error> {
    let Some(username) = login.user else {
        return Ok(config_file()
            .and_then(|path| fs::read(path).ok())
            .map(|text| of_docker(&text))
            .unwrap_or_default());
    };
    let host = reference.split('/').next().unwrap_or_default().to_owned();
    let password = match env::var(PASSWORD) {
        Ok(password) => password,
        Err(_) if io::stdin().is_terminal() => {
            return Err(Error::Usage(format!(
                "--user needs a password: write it to standard input (`... < FILE`), or set {PASSWORD}"
            )));
        }
        Err(_) => {
            let mut line = String::new();
            io::stdin().lock().read_line(&mut line).map_err(|source| Error::Stdin { source })?;
            line.trim_end_matches(['\r', '\n']).to_owned()
        }
    };
    if password.is_empty() {
        return Err(Error::Usage("--user needs a password, and it is empty".to_owned()));
    }
    Ok(vec![v1::Credential { host, username, password }])
}

fn config_file() -> Option<PathBuf> {
    let dir = env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".docker"));
    Some(dir.or_else(home)?.join("config.json"))
}

/// What `docker login` and `nerdctl login` leave. A file that is not theirs has none.
fn of_docker(text: &[u8]) -> Vec<v1::Credential> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        auths: BTreeMap<String, Auth>,
    }
    #[derive(Deserialize)]
    struct Auth {
        #[serde(default)]
        auth: String,
    }
    let file: File = serde_json::from_slice(text).unwrap_or(File { auths: BTreeMap::new() });
    let credential = |(place, Auth { auth }): (String, Auth)| {
        let pair = String::from_utf8(STANDARD.decode(auth).ok()?).ok()?;
        let (username, password) = pair.split_once(':')?;
        let place = place.split_once("://").map_or(place.as_str(), |(_, rest)| rest);
        let host = place.split('/').next()?.to_owned();
        let (username, password) = (username.to_owned(), password.to_owned());
        (!username.is_empty()).then_some(v1::Credential { host, username, password })
    };
    file.auths.into_iter().filter_map(credential).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_file_is_read() {
        let text = format!(
            r#"{{"auths": {{"h.example:5000": {{"auth": "{}"}}, "https://i.example/v1/": {{"auth": "{}"}},
                "helped.example": {{}}, "odd.example": {{"auth": "%%%"}}}}, "credsStore": "secretservice"}}"#,
            STANDARD.encode("ci:a:b"),
            STANDARD.encode("me:x"),
        );
        let found: Vec<_> = of_docker(text.as_bytes())
            .into_iter()
            .map(|c| format!("{} {} {}", c.host, c.username, c.password))
            .collect();
        assert_eq!(found, ["h.example:5000 ci a:b", "i.example me x"]);
        assert!(of_docker(b"no JSON").is_empty());
    }
}
