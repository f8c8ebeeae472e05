//! What the two programs tell, as JSON: in a cluster whose API server is away, which each of them tells at once.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use serde_json::Value;

const CONFIG: &str = "
apiVersion: v1
kind: Config
current-context: away
contexts: [{name: away, context: {cluster: away, user: nobody, namespace: default}}]
clusters: [{name: away, cluster: {server: 'http://127.0.0.1:1'}}]
users: [{name: nobody, user: {token: none}}]
";

/// Its first line.
#[allow(clippy::unwrap_used)] // of a test
fn told(arguments: &[&str], format: Option<&str>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    std::fs::write(&config, CONFIG).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_capsule-controller"));
    command.args(arguments).env("KUBECONFIG", config).env("RUST_LOG", "warn").stderr(Stdio::piped());
    match format {
        Some(format) => command.env("LOG_FORMAT", format),
        None => command.env_remove("LOG_FORMAT"),
    };
    let mut program = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(program.stderr.take().unwrap()).read_line(&mut line).unwrap();
    program.kill().unwrap();
    program.wait().unwrap();
    line
}

#[test]
fn each_line_is_an_object_where_that_is_asked_for() {
    let controller = ["controller", "--identity", "this"];
    let agent = ["agent", "--node", "this", "--socket", "/nonexistent/capsuled.sock"];
    let by_option = ["controller", "--identity", "this", "--log-format", "json"];
    for (arguments, format) in
        [(&controller[..], Some("json")), (&agent[..], Some("json")), (&by_option[..], None)]
    {
        let line = told(arguments, format);
        let object: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        for key in ["timestamp", "level", "target", "message"] {
            assert!(object[key].is_string(), "{arguments:?}: no {key} in {line}");
        }
    }
    for format in [Some("text"), None] {
        let line = told(&controller, format);
        assert!(!line.is_empty() && !line.starts_with('{') && !line.contains('\x1b'), "{line:?}");
    }
}
