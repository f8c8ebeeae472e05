//! `capsule.v1.Budgets`.

use capsule_proto::capsule::v1 as wire;
use tonic::{Request, Response, Status};

use crate::{
    attachments::Attachments,
    resources::{Usage, Use},
};

/// The service.
#[derive(Clone)]
pub struct BudgetsService {
    attachments: Attachments,
}

impl BudgetsService {
    /// Over what is attached.
    pub fn new(attachments: Attachments) -> Self {
        Self { attachments }
    }
}

#[tonic::async_trait]
impl wire::budgets_server::Budgets for BudgetsService {
    async fn list_budgets(
        &self,
        _: Request<wire::ListBudgetsRequest>,
    ) -> Result<Response<wire::ListBudgetsResponse>, Status> {
        let budgets = self.attachments.budget_usage().iter().map(budget).collect();
        Ok(Response::new(wire::ListBudgetsResponse { budgets }))
    }
}

fn budget(usage: &Usage) -> wire::Budget {
    let show = |number| usage.dimension.show(number);
    let one = |one: &Use| wire::BudgetUse {
        namespace: one.holding.container.namespace.clone(),
        container: one.holding.container.id.clone(),
        attachment_id: one.holding.id.clone(),
        label: one.holding.label.clone(),
        amount: one.amount,
        amount_text: show(one.amount),
    };
    wire::Budget {
        scope: usage.scope.kind().to_owned(),
        name: usage.scope.name(),
        limit: usage.dimension.to_string(),
        budget: usage.budget,
        used: usage.used,
        uses: usage.uses.iter().map(one).collect(),
        budget_text: usage.budget.map(show).unwrap_or_default(),
        used_text: show(usage.used),
    }
}
