//! Where a collector listens.

use std::{fmt, path::PathBuf, str::FromStr};

use tonic::transport::Uri;

/// A collector that speaks OTLP over gRPC.
///
/// | written | means |
/// | --- | --- |
/// | `http://HOST:PORT` | TCP, without encryption |
/// | `unix:/PATH` | a Unix socket |
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// By TCP.
    Http(Uri),
    /// By a socket with this absolute path.
    Unix(PathBuf),
}

/// Why a text is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no collector: write http://HOST:PORT or unix:/PATH")]
pub struct InvalidEndpoint(String);

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidEndpoint(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(invalid()) };
        }
        let uri: Uri = text.parse().map_err(|_| invalid())?;
        let is_root = matches!(uri.path(), "" | "/") && uri.query().is_none();
        if uri.scheme_str() == Some("http") && uri.port().is_some() && is_root {
            Ok(Self::Http(uri))
        } else {
            Err(invalid())
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(uri) => write!(f, "{}", uri.to_string().trim_end_matches('/')),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_and_no_other() {
        for (text, shown) in [
            ("http://127.0.0.1:4317", "http://127.0.0.1:4317"),
            ("http://collector:4317/", "http://collector:4317"),
            ("unix:/run/otel.sock", "unix:/run/otel.sock"),
            ("unix:///run/otel.sock", "unix:/run/otel.sock"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), shown);
        }
        for text in [
            "",
            "127.0.0.1:4317",
            "http://127.0.0.1",
            "https://a:1",
            "http://a:1/v1/traces",
            "unix:run",
            "unix:",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
