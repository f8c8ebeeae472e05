//! What attachments do to limits, and what comes of it. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{error::LimitError, file::File, value::Value};

/// Limits by their files.
pub type Amounts = BTreeMap<File, Value>;

/// What one attachment does to a container's limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Added.
    pub grants: Amounts,
    /// Not to be exceeded.
    pub caps: Amounts,
}

impl Change {
    /// Nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.grants.is_empty() && self.caps.is_empty()
    }

    /// With the files that `of` says for those that are named.
    #[must_use]
    pub fn renamed(self, of: impl Fn(File) -> File) -> Self {
        let all = |amounts: Amounts| amounts.into_iter().map(|(file, value)| (of(file), value)).collect();
        Self { grants: all(self.grants), caps: all(self.caps) }
    }

    /// The files that it changes.
    pub fn files(&self) -> impl Iterator<Item = &File> {
        self.grants.keys().chain(self.caps.keys())
    }
}

/// The limits that a container is to have, of those that it has for itself: its own, with all grants, and not above any cap.
///
/// # Errors
/// [`LimitError::NoCpus`].
pub fn effective<'a>(
    own: &Amounts,
    changes: impl Iterator<Item = &'a Change> + Clone,
) -> Result<Amounts, LimitError> {
    let of = |(file, own): (&File, &Value)| {
        let grants = changes.clone().filter_map(|change| change.grants.get(file));
        let caps = changes.clone().filter_map(|change| change.caps.get(file));
        let granted = grants.fold(own.clone(), Value::plus);
        let mut value = granted.clone();
        for cap in caps {
            value = value
                .capped(cap)
                .ok_or_else(|| LimitError::NoCpus { granted: granted.to_string(), cap: cap.to_string() })?;
        }
        Ok((file.clone(), value.within(file)))
    };
    own.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NUMBERS: [File; 3] = [File::MemoryMax, File::PidsMax, File::MemoryLow];

    fn amount(file: File) -> BoxedStrategy<Value> {
        use super::super::file::Kind;
        match file.kind() {
            Kind::Number => (1u64..1 << 40).prop_map(|n| Value::Number(Some(n))).boxed(),
            Kind::Quota => (1000u64..400_000, 1000u64..1_000_000)
                .prop_map(|(quota, period)| Value::Quota { quota: Some(quota), period })
                .boxed(),
            Kind::Weight => (1u64..10_000).prop_map(Value::Weight).boxed(),
            // With one CPU in all, no cap leaves none.
            Kind::Cpus => prop::collection::btree_set(0u32..8, 0..5)
                .prop_map(|mut cpus| {
                    cpus.insert(0);
                    Value::Cpus(cpus)
                })
                .boxed(),
            Kind::Io => (1u64..1 << 30, 0u32..3)
                .prop_map(|(n, minor)| {
                    Value::read(&File::IoMax, &format!("8:{minor} rbps={n} wiops={n}")).unwrap()
                })
                .boxed(),
        }
    }

    fn amounts() -> impl Strategy<Value = Amounts> {
        let files = NUMBERS.into_iter().chain([File::CpuMax, File::CpuWeight, File::CpusetCpus, File::IoMax]);
        let each: Vec<_> = files
            .map(|file| prop::option::of(amount(file.clone()).prop_map(move |v| (file.clone(), v))))
            .collect();
        each.prop_map(|all| all.into_iter().flatten().collect())
    }

    fn full() -> impl Strategy<Value = Amounts> {
        let files = NUMBERS.into_iter().chain([File::CpuMax, File::CpuWeight, File::CpusetCpus, File::IoMax]);
        let each: Vec<_> =
            files.map(|file| amount(file.clone()).prop_map(move |v| (file.clone(), v))).collect();
        each.prop_map(|all| all.into_iter().collect())
    }

    fn change() -> impl Strategy<Value = Change> {
        (amounts(), amounts()).prop_map(|(grants, caps)| Change { grants, caps })
    }

    proptest! {
        #[test]
        fn the_order_of_attachments_is_nothing(own in full(), changes in prop::collection::vec(change(), 0..6), turn in 0usize..6) {
            let mut other = changes.clone();
            other.reverse();
            let by = turn.min(other.len());
            other.rotate_left(by);
            prop_assert_eq!(effective(&own, changes.iter()).unwrap(), effective(&own, other.iter()).unwrap());
        }

        #[test]
        fn without_changes_it_is_the_containers_own(own in full()) {
            prop_assert_eq!(effective(&own, [].iter()).unwrap(), own);
        }

        #[test]
        fn numbers_are_the_sum_and_not_above_a_cap(own in full(), changes in prop::collection::vec(change(), 0..6)) {
            let effective = effective(&own, changes.iter()).unwrap();
            let of = |amounts: &Amounts, file: &File| match amounts.get(file) {
                Some(Value::Number(Some(n))) => Some(*n),
                _ => None,
            };
            for file in &NUMBERS {
                let sum = of(&own, file).unwrap() + changes.iter().filter_map(|c| of(&c.grants, file)).sum::<u64>();
                let want = changes.iter().filter_map(|c| of(&c.caps, file)).fold(sum, u64::min);
                prop_assert_eq!(of(&effective, file), Some(want));
            }
        }
    }

    #[test]
    fn no_cpu_is_refused() {
        let cpus = |text| Value::read(&File::CpusetCpus, text).unwrap();
        let own = Amounts::from([(File::CpusetCpus, cpus("0"))]);
        let change = Change { caps: Amounts::from([(File::CpusetCpus, cpus("1"))]), ..Change::default() };
        let refused = effective(&own, [&change].into_iter()).unwrap_err();
        assert!(refused.to_string().contains("cpuset.cpus"), "{refused}");
    }
}
