//! What an attachment does to the limits of its container. Pure: no I/O.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::amount::{Amount, File, InvalidAmount};

/// What somebody asks for: disks by the names that they wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    grants: BTreeMap<File, Amount>,
    caps: BTreeMap<File, Amount>,
}

impl Wanted {
    /// Judges what was written: file and amount each.
    ///
    /// # Errors
    /// [`InvalidAmount`] for the first that is none.
    pub fn parse<'a>(
        grants: impl IntoIterator<Item = (&'a String, &'a String)>,
        caps: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Self, InvalidAmount> {
        let grants = grants.into_iter().map(|one| parse_one(one, Amount::parse));
        let caps = caps.into_iter().map(|one| parse_one(one, Amount::parse_cap));
        let (grants, caps) = (grants.collect::<Result<_, _>>()?, caps.collect::<Result<_, _>>()?);
        Ok(Self { grants, caps })
    }

    /// With what `over` says of a limit in the place of what is said here of it.
    #[must_use]
    pub fn overlaid(mut self, over: &Self) -> Self {
        self.grants.extend(over.grants.clone());
        self.caps.extend(over.caps.clone());
        self
    }

    /// With each amount as `settle` makes it.
    ///
    /// # Errors
    /// Its first.
    pub fn settle<E>(&self, settle: impl Fn(&Amount) -> Result<Amount, E>) -> Result<Resources, E> {
        let all = |amounts: &BTreeMap<File, Amount>| {
            amounts
                .iter()
                .map(|(file, amount)| Ok((file.to_string(), settle(amount)?.to_string())))
                .collect::<Result<BTreeMap<_, _>, E>>()
        };
        Ok(Resources { grants: all(&self.grants)?, caps: all(&self.caps)? })
    }

    /// As records keep it.
    pub fn record(&self) -> Resources {
        let all = |amounts: &BTreeMap<File, Amount>| {
            amounts.iter().map(|(file, amount)| (file.to_string(), amount.to_string())).collect()
        };
        Resources { grants: all(&self.grants), caps: all(&self.caps) }
    }
}

fn parse_one(
    (file, amount): (&String, &String),
    parse: impl Fn(&File, &str) -> Result<Amount, InvalidAmount>,
) -> Result<(File, Amount), InvalidAmount> {
    let parsed: File =
        file.parse().map_err(|reason| InvalidAmount { file: file.clone(), value: amount.clone(), reason })?;
    let amount = parse(&parsed, amount)?;
    Ok((parsed, amount))
}

/// What an attachment does, in the kernel's words: amounts by files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// What it adds.
    #[serde(default)]
    pub grants: BTreeMap<String, String>,
    /// What a limit is not above.
    #[serde(default)]
    pub caps: BTreeMap<String, String>,
}

impl Resources {
    /// Whether it does nothing.
    pub fn is_empty(&self) -> bool {
        self.grants.is_empty() && self.caps.is_empty()
    }

    /// As it was asked for.
    ///
    /// # Errors
    /// [`InvalidAmount`]; of a record none.
    pub fn wanted(&self) -> Result<Wanted, InvalidAmount> {
        Wanted::parse(&self.grants, &self.caps)
    }

    /// Those that concern memory.
    pub fn is_of_memory(&self) -> bool {
        self.grants.keys().chain(self.caps.keys()).any(|file| file.starts_with("memory."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        all.iter().map(|(file, amount)| ((*file).to_owned(), (*amount).to_owned())).collect()
    }

    #[test]
    fn what_a_person_says_takes_the_place_of_what_the_capsule_says() {
        let declared =
            Wanted::parse(&map(&[("memory.max", "1M"), ("pids.max", "8")]), &map(&[("cpu.weight", "5")]));
        let asked = Wanted::parse(&map(&[("memory.max", "2M")]), &map(&[("pids.max", "3")])).unwrap();
        let both = declared.unwrap().overlaid(&asked).record();
        assert_eq!(both.grants, map(&[("memory.max", "2097152"), ("pids.max", "8")]));
        assert_eq!(both.caps, map(&[("cpu.weight", "5"), ("pids.max", "3")]));
        assert_eq!(both.wanted().unwrap().record(), both);
        // A cap of 0 is read again from a record; a grant of 0 is none.
        let no_swap = Wanted::parse(&map(&[]), &map(&[("memory.swap.max", "0")])).unwrap().record();
        assert_eq!(no_swap.wanted().unwrap().record(), no_swap);
        assert!(Wanted::parse(&map(&[("memory.swap.max", "0")]), &map(&[])).is_err());
        assert!(both.is_of_memory() && !both.is_empty());
    }

    #[test]
    fn mistakes_name_file_and_value() {
        let wrong = Wanted::parse(&map(&[("memory.min", "1M")]), &map(&[])).unwrap_err().to_string();
        assert!(wrong.contains("memory.min") && wrong.contains("use memory.max"), "{wrong}");
        let wrong = Wanted::parse(&map(&[]), &map(&[("pids.max", "many")])).unwrap_err().to_string();
        assert!(wrong.contains("pids.max \"many\""), "{wrong}");
    }
}
