//! capsule-integration.
