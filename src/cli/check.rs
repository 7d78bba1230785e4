//! `check`: judges traces.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{Failure, Outcome, events};

/// The checker: judges traces.
///
/// Judges the traces of one run together, and says per predicate: pass, fail with the events that prove it, or not
/// exercised. Exit code 1 on a violation, 2 if a trace is unreadable or incomplete.
#[derive(Args)]
pub(crate) struct Check {
    /// Trace files (JSON lines): all that belong to one run.
    #[arg(required = true, value_name = "TRACE")]
    traces: Vec<PathBuf>,
}

impl Check {
    pub(crate) fn run(self, json: bool) -> Outcome {
        let report = checker::check_files(&self.traces).map_err(|e| Failure::usage(e.to_string()))?;
        if json {
            for verdict in &report.verdicts {
                events::line(&serde_json::to_string(verdict)?);
            }
            if let Some(invalid) = &report.invalid {
                events::line(&json!({"event": "invalid", "why": invalid.to_string()}).to_string());
            }
        } else {
            events::line(report.to_string().trim_end());
        }
        Ok(report.exit_code())
    }
}
