//! `doctor`: what is in the way of capsules on this machine.

use std::fmt::Write as _;
use std::time::SystemTime;

use serde::Serialize;

use super::Target;
use crate::args::DoctorArgs;
use crate::doctor::{self, Finding, State};
use crate::error::Error;
use crate::text::{Text, escape_control};

/// Result of `doctor`.
#[derive(Debug, Serialize)]
struct Report {
    findings: Vec<Finding>,
    errors: usize,
    warnings: usize,
}

impl Text for Report {
    fn text(&self, _: SystemTime) -> String {
        let width = self.findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
        let mut text = String::new();
        for Finding { check, state, found, advice } in &self.findings {
            let advice = advice.as_ref().map(|advice| format!(": {advice}")).unwrap_or_default();
            let line = format!("{:<9}{check:<width$}   {found}{advice}", state.name());
            let _ = writeln!(text, "{}", escape_control(&line)); // writing to a String does not fail
        }
        text
    }
}

/// Looks at the machine, and prints what it finds.
///
/// # Errors
/// [`Error::Unfit`] when something is an error; the findings are printed then, too.
pub async fn doctor(to: Target<'_>, args: DoctorArgs) -> Result<(), Error> {
    let findings = doctor::examine(to.socket("doctor")?, &args.capsuled_config).await;
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    let (errors, warnings) = (count(State::Error), count(State::Warning));
    let report = Report { findings, errors, warnings };
    to.print(&report, &report)?;
    match errors {
        0 => Ok(()),
        errors => Err(Error::Unfit { errors, checks: report.findings.len() }),
    }
}
