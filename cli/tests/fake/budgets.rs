//! Budgets.

use capsule_proto::capsule::v1;
use capsule_proto::capsule::v1::budgets_server::Budgets;
use tonic::{Request, Response, Status};

use super::{Asked, Service};

#[tonic::async_trait]
impl Budgets for Service {
    async fn list_budgets(
        &self,
        request: Request<v1::ListBudgetsRequest>,
    ) -> Result<Response<v1::ListBudgetsResponse>, Status> {
        self.heard(Asked::Budgets(request.into_inner()));
        let node = v1::Budget {
            scope: "node".into(),
            limit: "memory.max".into(),
            budget: Some(3 << 30),
            used: 3 << 29,
            budget_text: "3GiB".into(),
            used_text: "1.5GiB".into(),
            uses: vec![v1::BudgetUse {
                namespace: "default".into(),
                container: "web".into(),
                attachment_id: "a1".into(),
                label: "tzdata@2026.1".into(),
                amount: 3 << 29,
                amount_text: "1.5GiB".into(),
            }],
            ..v1::Budget::default()
        };
        let pod = v1::Budget {
            scope: "pod".into(),
            name: "shop/cart".into(),
            limit: "pids.max".into(),
            used_text: "0".into(),
            ..v1::Budget::default()
        };
        Ok(Response::new(v1::ListBudgetsResponse { budgets: vec![node, pod] }))
    }
}
