//! Budgets, and what is used.

use capsule_proto::capsule::v1;
use capsule_proto::capsule::v1::budgets_server::Budgets;
use capsule_proto::capsule::v1::metrics_server::Metrics;
use capsule_proto::capsule::v1::usage_server::Usage;
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

#[tonic::async_trait]
impl Usage for Service {
    async fn list_usage(
        &self,
        request: Request<v1::ListUsageRequest>,
    ) -> Result<Response<v1::ListUsageResponse>, Status> {
        self.heard(Asked::Usage(request.into_inner()));
        let web = v1::ContainerUsage {
            namespace: "default".into(),
            container: "web".into(),
            attachments: vec!["tzdata@2026.1".into()],
            measured_at: Some(std::time::SystemTime::now().into()),
            memory: 5 << 20,
            memory_limit: Some(1 << 30),
            pids: 7,
            memory_pressure: Some(v1::Pressure { some: 3.0, full: 1.0, ..v1::Pressure::default() }),
            ..v1::ContainerUsage::default()
        };
        let stopped = v1::ContainerUsage { container: "old".into(), measured_at: None, ..web.clone() };
        Ok(Response::new(v1::ListUsageResponse { containers: vec![web, stopped] }))
    }
}

#[tonic::async_trait]
impl Metrics for Service {
    async fn read_metrics(
        &self,
        _: Request<v1::ReadMetricsRequest>,
    ) -> Result<Response<v1::ReadMetricsResponse>, Status> {
        let text = "capsuled_versions 3\n# EOF\n".to_owned();
        Ok(Response::new(v1::ReadMetricsResponse { text }))
    }
}
