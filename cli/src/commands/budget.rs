//! `budget`: how much attachments may add to limits, and what is used.

use std::time::SystemTime;

use capsule_proto::capsule::v1;
use serde::Serialize;

use super::Target;
use crate::error::Error;
use crate::table::Table;
use crate::text::Text;
use crate::view::filled;

#[derive(Debug, Serialize)]
struct Budgets {
    budgets: Vec<Budget>,
}

#[derive(Debug, Serialize)]
struct Budget {
    /// `node`, `namespace`, `pod` or `container`.
    scope: String,
    /// Which; `null` for the node.
    name: Option<String>,
    /// By the kernel's name.
    limit: String,
    /// Bytes, a number, millionths of a CPU, or of a rate so many in a second; `null` where there is no budget.
    budget: Option<u64>,
    used: u64,
    uses: Vec<Use>,
    #[serde(skip)]
    texts: (String, String),
}

#[derive(Debug, Serialize)]
struct Use {
    namespace: String,
    container: String,
    attachment: String,
    /// Capsule and version.
    label: String,
    amount: u64,
    #[serde(skip)]
    text: String,
}

impl From<v1::Budget> for Budget {
    fn from(b: v1::Budget) -> Self {
        let one = |u: v1::BudgetUse| Use {
            namespace: u.namespace,
            container: u.container,
            attachment: u.attachment_id,
            label: u.label,
            amount: u.amount,
            text: u.amount_text,
        };
        Self {
            scope: b.scope,
            name: filled(b.name),
            limit: b.limit,
            budget: b.budget,
            used: b.used,
            uses: b.uses.into_iter().map(one).collect(),
            texts: (b.budget_text, b.used_text),
        }
    }
}

impl Text for Budgets {
    fn text(&self, _: SystemTime) -> String {
        let mut table = Table::new(["SCOPE", "NAME", "LIMIT", "BUDGET", "USED", "BY"]);
        for b in &self.budgets {
            let one = |u: &Use| format!("{}/{} {} {}", u.namespace, u.container, u.label, u.text);
            table.row([
                b.scope.clone(),
                b.name.clone().unwrap_or_default(),
                b.limit.clone(),
                if b.budget.is_some() { b.texts.0.clone() } else { "none".to_owned() },
                b.texts.1.clone(),
                b.uses.iter().map(one).collect::<Vec<_>>().join(", "),
            ]);
        }
        table.to_string()
    }
}

/// Lists budgets.
///
/// # Errors
/// capsuled's.
pub async fn list(to: Target<'_>) -> Result<(), Error> {
    let answer = to.connect().await?.budgets().list_budgets(v1::ListBudgetsRequest {}).await?.into_inner();
    let budgets = Budgets { budgets: answer.budgets.into_iter().map(Budget::from).collect() };
    to.print(&budgets, &budgets)
}
