//! Budgets: how much attachments may add to limits, on a node, in a containerd namespace, in a pod, in a container.
//!
//! What counts is what attachments grant, whether the container's own limit lets it have an effect or not, and whether its task
//! runs or waits. Caps cost nothing. Pure but for what is reserved while a call is under way.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    amount::{Amount, File},
    model::Resources,
};
use crate::attachments::model::ContainerKey;

/// One thing that is counted: a limit, or of `io.max` one rate of one disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dimension {
    file: File,
    /// `MAJ:MIN KEY`, of `io.max`.
    of: String,
}

impl Dimension {
    /// What an amount is in numbers: bytes, a count, or millionths of a CPU. CPUs of a list are not counted.
    pub fn amounts(file: &File, amount: &Amount) -> BTreeMap<Self, u64> {
        let whole = |number| BTreeMap::from([(Self { file: file.clone(), of: String::new() }, number)]);
        match amount {
            Amount::Number(number) => whole(*number),
            Amount::Cpu { quota, period } => whole(quota.saturating_mul(1_000_000) / period),
            Amount::Cpus(_) => BTreeMap::new(),
            Amount::Io(disks) => disks
                .iter()
                .flat_map(|(disk, rates)| {
                    rates.iter().map(move |(key, rate)| {
                        (Self { file: file.clone(), of: format!("{disk} {key}") }, *rate)
                    })
                })
                .collect(),
        }
    }

    /// For people.
    pub fn show(&self, number: u64) -> String {
        match &self.file {
            file if file.is_bytes() => show_bytes(number),
            File::IoMax if self.of.ends_with("bps") => format!("{}/s", show_bytes(number)),
            File::CpuMax => {
                let text = format!("{}.{:06}", number / 1_000_000, number % 1_000_000);
                format!("{}cpus", text.trim_end_matches('0').trim_end_matches('.'))
            }
            _ => number.to_string(),
        }
    }
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.of.is_empty() { write!(f, "{}", self.file) } else { write!(f, "{} {}", self.file, self.of) }
    }
}

/// In the largest unit that leaves no more than one place.
fn show_bytes(bytes: u64) -> String {
    let unit = [("GiB", 30), ("MiB", 20), ("KiB", 10)].into_iter().find(|(_, shift)| bytes >> shift > 0);
    let Some((unit, shift)) = unit else { return format!("{bytes}B") };
    let tenths = (u128::from(bytes) * 10) >> shift;
    match tenths % 10 {
        0 => format!("{}{unit}", tenths / 10),
        tenth => format!("{}.{tenth}{unit}", tenths / 10),
    }
}

/// The most of each thing.
pub type Budget = BTreeMap<Dimension, u64>;

/// All budgets of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ceilings {
    /// Of all attachments.
    pub node: Budget,
    /// Of those in each containerd namespace that has none of its own.
    pub namespace: Budget,
    /// Of those in this one.
    pub namespaces: BTreeMap<String, Budget>,
    /// Of those in each pod.
    pub pod: Budget,
    /// Of those in each container.
    pub container: Budget,
}

/// What a budget is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// The node.
    Node,
    /// A containerd namespace.
    Namespace(String),
    /// A pod, as people call it.
    Pod(String),
    /// A container.
    Container(ContainerKey),
}

impl Scope {
    /// Where its budget is in the configuration.
    fn table(&self, ceilings: &Ceilings) -> String {
        match self {
            Self::Namespace(name) if ceilings.namespaces.contains_key(name) => {
                format!("budgets.namespaces.{name}")
            }
            scope => format!("budgets.{}", scope.kind()),
        }
    }

    /// One word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Namespace(_) => "namespace",
            Self::Pod(_) => "pod",
            Self::Container(_) => "container",
        }
    }

    /// Which one; nothing for the node.
    pub fn name(&self) -> String {
        match self {
            Self::Node => String::new(),
            Self::Namespace(name) | Self::Pod(name) => name.clone(),
            Self::Container(key) => key.to_string(),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("the node"),
            scope => write!(f, "the {} {}", scope.kind(), scope.name()),
        }
    }
}

/// What one attachment grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The attachment.
    pub id: String,
    /// Its container.
    pub container: ContainerKey,
    /// Its container's pod.
    pub pod: Option<String>,
    /// Capsule and version.
    pub label: String,
    amounts: BTreeMap<Dimension, u64>,
}

impl Holding {
    /// Of an attachment that has, or is about to have, one of these.
    pub fn new<'a>(
        id: &str,
        container: &ContainerKey,
        pod: Option<String>,
        label: String,
        resources: impl IntoIterator<Item = &'a Resources>,
    ) -> Self {
        let mut amounts: BTreeMap<Dimension, u64> = BTreeMap::new();
        for (file, text) in resources.into_iter().flat_map(|one| &one.grants) {
            let Ok(file) = file.parse() else { continue };
            let Ok(amount) = Amount::parse(&file, text) else { continue };
            for (dimension, number) in Dimension::amounts(&file, &amount) {
                let most = amounts.entry(dimension).or_default();
                *most = number.max(*most);
            }
        }
        Self { id: id.to_owned(), container: container.clone(), pod, label, amounts }
    }

    fn scopes(&self) -> impl Iterator<Item = Scope> {
        let pod = self.pod.clone().map(Scope::Pod);
        let own = [Scope::Node, Scope::Namespace(self.container.namespace.clone())];
        own.into_iter().chain(pod).chain([Scope::Container(self.container.clone())])
    }
}

/// What one attachment uses of a budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// The attachment.
    pub holding: Holding,
    /// How much.
    pub amount: u64,
}

/// One budget, and what is used of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Whose.
    pub scope: Scope,
    /// Of what.
    pub dimension: Dimension,
    /// How much; none where there is no budget.
    pub budget: Option<u64>,
    /// How much is used.
    pub used: u64,
    /// By what, the most first.
    pub uses: Vec<Use>,
}

/// A budget that would be exceeded. Nothing has changed.
#[derive(Debug, thiserror::Error)]
#[error(
    "{asked_for} asks for {} of {dimension}, and the budget of {scope} is {}, of which {} is used{}: detach something, or raise [{table}] in capsuled's configuration",
    .dimension.show(*.asked), .dimension.show(*.budget), .dimension.show(*.used), list(.dimension, .uses)
)]
pub struct BudgetError {
    /// Whose budget.
    pub scope: Scope,
    /// Its table in the configuration.
    pub table: String,
    /// Of what.
    pub dimension: Dimension,
    /// How much there is.
    pub budget: u64,
    /// How much is used.
    pub used: u64,
    /// By what, the most first.
    pub uses: Vec<Use>,
    /// How much more was asked for.
    pub asked: u64,
    /// For what.
    pub asked_for: String,
}

/// How many attachments a message names.
const NAMED: usize = 3;

fn list(dimension: &Dimension, uses: &[Use]) -> String {
    let mut named: Vec<String> = uses
        .iter()
        .take(NAMED)
        .map(|one| {
            format!("{} by {} in {}", dimension.show(one.amount), one.holding.label, one.holding.container)
        })
        .collect();
    if uses.len() > NAMED {
        named.push(format!("and {} more", uses.len() - NAMED));
    }
    if named.is_empty() { String::new() } else { format!(" ({})", named.join(", ")) }
}

/// The budgets of this node: cheap to clone, shared.
#[derive(Debug, Clone, Default)]
pub struct Budgets {
    ceilings: Arc<Ceilings>,
    /// By attachment: what calls under way ask for.
    reserved: Arc<Mutex<BTreeMap<String, Holding>>>,
}

impl Budgets {
    /// With these.
    pub fn new(ceilings: Ceilings) -> Self {
        Self { ceilings: Arc::new(ceilings), reserved: Arc::default() }
    }

    /// Whether pods have any.
    pub fn has_pods(&self) -> bool {
        !self.ceilings.pod.is_empty()
    }

    /// Of no attachment yet; see [`Reservation::take`].
    pub fn open(&self) -> Reservation {
        Reservation { budgets: self.clone(), ids: BTreeSet::new() }
    }

    /// What is used of each budget, and what is used where there is none: by scope.
    pub fn usage(&self, held: Vec<Holding>) -> Vec<Usage> {
        let held = together(held, &self.reserved());
        let scopes: BTreeSet<Scope> = held.values().flat_map(Holding::scopes).chain([Scope::Node]).collect();
        let named = self.ceilings.namespaces.keys().cloned().map(Scope::Namespace);
        let scopes: BTreeSet<Scope> = scopes.into_iter().chain(named).collect();
        scopes.into_iter().flat_map(|scope| self.usage_of(scope, &held)).collect()
    }

    fn usage_of(&self, scope: Scope, held: &BTreeMap<String, Holding>) -> Vec<Usage> {
        let budget = self.ceilings.of(&scope);
        let inside = || held.values().filter(|holding| holding.scopes().any(|s| s == scope));
        let used = inside().flat_map(|holding| holding.amounts.keys());
        let dimensions: BTreeSet<&Dimension> = used.chain(budget.keys()).collect();
        let usage = |dimension: &Dimension| {
            let uses = uses(inside(), dimension);
            Usage {
                scope: scope.clone(),
                dimension: dimension.clone(),
                budget: budget.get(dimension).copied(),
                used: sum(&uses),
                uses,
            }
        };
        dimensions.into_iter().map(usage).collect()
    }

    fn reserved(&self) -> MutexGuard<'_, BTreeMap<String, Holding>> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a call under way asks for. It counts until this is dropped: to be after what the call has made is on record.
#[derive(Debug)]
pub struct Reservation {
    budgets: Budgets,
    ids: BTreeSet<String>,
}

impl Reservation {
    /// Reserves what is asked for, all of it or nothing. `held`: what is on record.
    ///
    /// # Errors
    /// [`BudgetError`] for the first budget that would be exceeded.
    pub fn take(
        &mut self,
        asked: Vec<Holding>,
        held: impl FnOnce() -> Vec<Holding>,
    ) -> Result<(), Box<BudgetError>> {
        if asked.iter().all(|holding| holding.amounts.is_empty()) {
            return Ok(());
        }
        let mut reserved = self.budgets.reserved();
        let before = together(held(), &reserved);
        let asked: BTreeMap<String, Holding> =
            asked.into_iter().map(|holding| (holding.id.clone(), holding)).collect();
        plan(&self.budgets.ceilings, &before, &asked)?;
        self.ids.extend(asked.keys().cloned());
        reserved.extend(asked);
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut reserved = self.budgets.reserved();
        for id in &self.ids {
            reserved.remove(id);
        }
    }
}

impl Ceilings {
    fn of(&self, scope: &Scope) -> &Budget {
        match scope {
            Scope::Node => &self.node,
            Scope::Namespace(name) => self.namespaces.get(name).unwrap_or(&self.namespace),
            Scope::Pod(_) => &self.pod,
            Scope::Container(_) => &self.container,
        }
    }
}

/// What is on record and what is reserved: of an attachment that is in both, the most of each.
fn together(held: Vec<Holding>, reserved: &BTreeMap<String, Holding>) -> BTreeMap<String, Holding> {
    let mut all = reserved.clone();
    for holding in held {
        let Some(there) = all.get_mut(&holding.id) else {
            all.insert(holding.id.clone(), holding);
            continue;
        };
        for (dimension, amount) in holding.amounts {
            let most = there.amounts.entry(dimension).or_default();
            *most = amount.max(*most);
        }
    }
    all
}

/// Refuses what makes a budget exceeded, or more exceeded than it is.
fn plan(
    ceilings: &Ceilings,
    before: &BTreeMap<String, Holding>,
    asked: &BTreeMap<String, Holding>,
) -> Result<(), Box<BudgetError>> {
    let scopes: BTreeSet<Scope> = asked.values().flat_map(Holding::scopes).collect();
    for scope in scopes {
        let inside = |holding: &&Holding| holding.scopes().any(|s| s == scope);
        for (dimension, budget) in ceilings.of(&scope) {
            let stay = before.values().filter(inside).filter(|holding| !asked.contains_key(&holding.id));
            let others = uses(stay, dimension);
            let wanted = uses(asked.values().filter(inside), dimension);
            let there = uses(before.values().filter(inside), dimension);
            let after = sum(&others).saturating_add(sum(&wanted));
            if after <= *budget || after <= sum(&there) {
                continue;
            }
            return Err(Box::new(BudgetError {
                table: scope.table(ceilings),
                dimension: dimension.clone(),
                budget: *budget,
                used: sum(&others),
                uses: others,
                asked: sum(&wanted),
                asked_for: wanted.iter().map(|one| one.holding.label.clone()).collect::<Vec<_>>().join(", "),
                scope,
            }));
        }
    }
    Ok(())
}

fn uses<'a>(holdings: impl Iterator<Item = &'a Holding>, dimension: &Dimension) -> Vec<Use> {
    let one =
        |holding: &Holding| Some(Use { amount: *holding.amounts.get(dimension)?, holding: holding.clone() });
    let mut all: Vec<Use> = holdings.filter_map(one).collect();
    all.sort_by(|a, b| b.amount.cmp(&a.amount).then_with(|| a.holding.container.cmp(&b.holding.container)));
    all
}

fn sum(uses: &[Use]) -> u64 {
    uses.iter().fold(0, |all, one| all.saturating_add(one.amount))
}

#[cfg(test)]
mod tests;
