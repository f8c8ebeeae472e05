//! What a server is reached by.

use std::{fmt, net::IpAddr, str::FromStr};

/// A DNS name or an address that a server's certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A DNS name, without wildcards.
    Name(String),
    /// An address.
    Address(IpAddr),
}

impl FromStr for Host {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let plain = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // What is all digits and dots is an address with a mistake in it.
        let numeric = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if text.len() > 253 || numeric || !text.split('.').all(plain) {
            return Err("write a DNS name or an IP address, without a port");
        }
        Ok(Self::Name(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_told_apart_and_mistakes_from_both() {
        assert_eq!("10.0.0.5".parse(), Ok(Host::Address([10, 0, 0, 5].into())));
        assert_eq!("::1".parse::<Host>().unwrap().to_string(), "::1");
        assert_eq!("Node-1.Example".parse(), Ok(Host::Name("node-1.example".to_owned())));
        let long = "a".repeat(64);
        for wrong in ["", "10.0.0", "node:7443", "a..b", "-a", "a-", "*.example", "a b", long.as_str()] {
            assert!(wrong.parse::<Host>().is_err(), "{wrong:?}");
        }
    }
}
