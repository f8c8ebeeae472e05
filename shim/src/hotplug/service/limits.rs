//! What an attachment does to limits, from the wire.

use capsule_proto::hotplug as wire;

use crate::{
    hotplug::model::InvalidRequest,
    limits::{Amounts, Change, File, Value},
};

/// Validates changes of limits.
///
/// # Errors
/// [`InvalidRequest::Limit`].
pub fn parse_change(resources: wire::Resources) -> Result<Change, InvalidRequest> {
    Ok(Change { grants: parse_all("grant", resources.grants)?, caps: parse_all("cap", resources.caps)? })
}

fn parse_all(what: &'static str, limits: Vec<wire::Limit>) -> Result<Amounts, InvalidRequest> {
    let mut amounts = Amounts::new();
    for wire::Limit { file: name, value, .. } in limits {
        let invalid =
            |reason| InvalidRequest::Limit { what, file: name.clone(), value: value.clone(), reason };
        // The weight is asked for as io.weight, whatever the kernel has for it.
        let file = File::parse(&name).filter(|file| *file != File::IoBfqWeight);
        let file = file.ok_or_else(|| invalid("this shim changes no such limit"))?;
        let amount = Value::parse(&file, &value).map_err(invalid)?;
        if amounts.insert(file, amount).is_some() {
            return Err(invalid("the file is named twice"));
        }
    }
    Ok(amounts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(all: &[(&str, &str)]) -> Vec<wire::Limit> {
        let limit = |(file, value): &(&str, &str)| {
            let mut limit = wire::Limit::new();
            (limit.file, limit.value) = ((*file).to_owned(), (*value).to_owned());
            limit
        };
        all.iter().map(limit).collect()
    }

    #[test]
    fn changes_are_validated_where_they_come_in() {
        let mut resources = wire::Resources::new();
        resources.grants = limits(&[("memory.max", "67108864"), ("io.max", "8:0 rbps=5")]);
        resources.caps = limits(&[("pids.max", "20")]);
        let change = parse_change(resources).unwrap();
        assert_eq!(change.grants[&File::MemoryMax], Value::Number(Some(67_108_864)));
        assert_eq!(change.files().count(), 3);
        for (bad, word) in [
            (&[("memory.max", "max")][..], "memory.max \"max\""),
            (&[("memory.min", "5")], "no such limit"),
            (&[("io.bfq.weight", "5")], "no such limit"),
            (&[("../memory.max", "5")], "no such limit"),
            (&[("pids.max", "5"), ("pids.max", "6")], "twice"),
        ] {
            let mut resources = wire::Resources::new();
            resources.caps = limits(bad);
            let error = parse_change(resources).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("cap"), "{error}");
        }
    }
}
