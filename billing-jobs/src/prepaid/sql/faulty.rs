//! The statements of the prepaid policy as the fault campaign breaks them: by the campaign's clock, and without some safeguards.

use crate::fault_injection::{clock, instead, without};

/// The texts of the statements with the campaign's clock and without the safeguards that it leaves out.
pub(super) fn mutated(text: &str, sqlite: bool) -> String {
    let mut text = text.to_owned();
    if let Some(clock) = clock() {
        let now = format!("(SELECT c.now FROM ({clock}) AS c)");
        let as_of = if sqlite {
            "CAST(unixepoch(details ->> '$.as_of', 'subsec') * 1000000 AS INTEGER)"
        } else {
            "(extract(epoch FROM (details ->> 'as_of')::timestamptz) * 1000000)::bigint"
        };
        let at_present = if sqlite {
            ("CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER)", now.clone())
        } else {
            ("interval '1 microsecond', now())", format!("interval '1 microsecond', instant!({now}))"))
        };
        for (original, other) in [
            at_present,
            ("coalesce($1, {now}) AS now", format!("coalesce($1, {now}) AS now")),
            ("micros!(finished_at) AS at", format!("{as_of} AS at")),
            ("AND started_at > instant!((SELECT now FROM clock) - $4)", "AND number!($4) > 0".to_owned()),
        ] {
            assert!(text.contains(original), "`{original}` is not in the statements");
            text = text.replace(original, &other);
        }
    }
    instead(
        "prepaid-no-fencing-check",
        &mut text,
        "AND f.fencing_token = $2 AND s.fencing_token = $2",
        "AND $2 > 0",
    );
    without("prepaid-no-notice-key", &mut text, NOTICE_KEY);
    if !sqlite {
        without("prepaid-no-wallet-lock", &mut text, "FOR NO KEY UPDATE OF w");
        without("prepaid-no-claim", &mut text, "FOR UPDATE OF d SKIP LOCKED");
        instead(
            "prepaid-no-claim",
            &mut text,
            "SET claimed_until = later!($4), attempts = attempts + 1",
            "SET claimed_until = NULL, attempts = attempts + 1 * ($4 > 0)::integer",
        );
    }
    text
}

const NOTICE_KEY: &str = "
ON CONFLICT (organization_id, episode, level) DO UPDATE
   SET event_id = excluded.event_id, passed = excluded.passed, created_at = excluded.created_at
 WHERE billing_notices.event_id IS NULL AND NOT billing_notices.passed AND (excluded.event_id IS NOT NULL OR excluded.passed)";
