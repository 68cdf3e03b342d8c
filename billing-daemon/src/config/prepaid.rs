//! The rules for the two jobs of the prepaid policy: what is ordered must be deliverable.

use billing_jobs::{
    DELIVER_KIND, DeliverParams, PREPAID_KIND, PrepaidParams,
    prepaid::{Desired, Level, Mode, notice_type, order_type},
};
use serde::de::DeserializeOwned;

use super::{job::Draft, report::Report};

/// Checks that there is at most one job of each kind, and that a policy that suspends has receivers that count.
pub(super) fn check(report: &Report<'_>, jobs: &[Draft<'_>]) {
    let enabled = |kind| jobs.iter().filter(move |job| job.enabled && job.is_of(kind));
    for kind in [PREPAID_KIND, DELIVER_KIND] {
        let mut of_kind = enabled(kind);
        let Some(first) = of_kind.next() else { continue };
        for job in of_kind {
            let first = report.location(&first.header);
            report.error(&job.header, format!("only one job may be of kind `{kind}`: {first} is one"));
        }
    }
    let Some(job) = enabled(PREPAID_KIND).next() else { return };
    let Some(PrepaidParams { mode, .. }) = params(job) else { return };
    let deliver = enabled(DELIVER_KIND).next();
    // What could not be read was reported.
    let Some(DeliverParams { endpoint }) = deliver.map_or(Some(DeliverParams::default()), params) else {
        return;
    };
    let require = |types: &[&str], what: &str| {
        let receives_all =
            |kind: &&str| endpoint.iter().any(|endpoint| endpoint.needed && endpoint.receives(kind));
        if types.iter().all(receives_all) {
            return;
        }
        let name = match mode {
            Mode::Enforce => "enforce",
            _ => "notify",
        };
        let message =
            format!("`mode = \"{name}\"` requires an endpoint with `needed = true` that receives {what}");
        let help = format!("add one with `types = {types:?}` to the job of kind `{DELIVER_KIND}`");
        report.error_with_help(&job.header, message, Some(help));
    };
    if mode != Mode::Watch {
        let levels = [Level(1), Level::EXHAUSTED, Level::FINAL];
        require(&levels.map(notice_type), "notices");
    }
    if mode == Mode::Enforce {
        require(&[Desired::Suspended, Desired::Running].map(order_type), "orders");
    }
}

fn params<P: DeserializeOwned>(job: &Draft<'_>) -> Option<P> {
    serde_json::from_value(job.params().clone()).ok()
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write as _, path::Path};

    use super::super::testing::{lines, now};
    use crate::{
        config::{Config, environment::Environment},
        plugins::{Plugins, kinds_for_validation},
    };

    fn check(mode: &str, endpoints: &[&str]) -> Vec<String> {
        let mut text = format!(
            "[[job]]\nname = 'prepaid'\nkind = 'prepaid'\nschedule.every = '60s'\nparams.mode = '{mode}'\n"
        );
        if !endpoints.is_empty() {
            text.push_str("[[job]]\nname = 'deliver'\nkind = 'deliver'\nschedule.every = '60s'\n");
        }
        for (n, endpoint) in endpoints.iter().enumerate() {
            let _ = writeln!(
                text,
                "[[job.params.endpoint]]\nname = 'e{n}'\nkind = 'command'\nargv = ['/bin/cat']\n{endpoint}"
            );
        }
        let environment = Environment::load(|_| None, Path::new("/nowhere"), None).expect("readable");
        let registry = kinds_for_validation(&Plugins::none());
        match Config::load(&text, "jobs.toml", &environment, &registry, now()) {
            Ok(config) => {
                assert_eq!(config.deliveries().endpoints.len(), endpoints.len());
                Vec::new()
            }
            Err(problems) => lines(&problems),
        }
    }

    #[test]
    fn enforced_policy_requires_needed_endpoints() {
        let notices = "types = ['billing.wallet.*']\nneeded = true";
        let orders = "types = ['billing.service.*']\nneeded = true";
        let low = "types = ['billing.wallet.low']\nneeded = true";
        for (mode, endpoints, missing) in [
            ("watch", vec![], vec![]),
            ("notify", vec![], vec!["notices"]),
            ("notify", vec![orders], vec!["notices"]),
            ("notify", vec![low], vec!["notices"]),
            ("notify", vec!["types = ['billing.wallet.*']"], vec!["notices"]),
            ("notify", vec![notices], vec![]),
            ("enforce", vec![notices], vec!["orders"]),
            ("enforce", vec![], vec!["notices", "orders"]),
            ("enforce", vec![notices, orders], vec![]),
            ("enforce", vec!["types = ['billing.*']\nneeded = true"], vec![]),
        ] {
            let problems = check(mode, &endpoints);
            assert_eq!(problems.len(), missing.len(), "{mode} {endpoints:?}: {problems:?}");
            for (problem, missing) in problems.iter().zip(missing) {
                assert!(problem.contains(&format!("that receives {missing}")), "{problem}");
            }
        }
    }
}
