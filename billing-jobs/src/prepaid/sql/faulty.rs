//! The statements of the prepaid policy as the fault campaign breaks them: by the campaign's clock, and without some safeguards.

use sea_orm::DbBackend;

use crate::fault_injection::{clock, instead, without};

/// The texts of the statements with the campaign's clock and without the safeguards that it leaves out.
pub(super) fn mutated(text: &str, backend: DbBackend) -> String {
    let mut text = text.to_owned();
    let sqlite = backend == DbBackend::Sqlite;
    if let Some(clock) = clock() {
        let now = format!("(SELECT c.now FROM ({clock}) AS c)");
        let replaced = if sqlite {
            [
                ("CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER)", now),
                (
                    "SELECT finished_at AS at",
                    "SELECT CAST(unixepoch(details ->> '$.as_of', 'subsec') * 1000000 AS INTEGER) AS at"
                        .to_owned(),
                ),
                ("AND started_at > (SELECT now FROM clock) - ?4", "AND ?4 > 0".to_owned()),
            ]
            .to_vec()
        } else {
            [
                ("(extract(epoch FROM now()) * 1000000)::bigint", now.clone()),
                ("interval '1 microsecond', now())", format!("interval '1 microsecond', timestamptz 'epoch' + {now} * interval '1 microsecond')")),
                ("extract(epoch FROM finished_at)", "extract(epoch FROM (details ->> 'as_of')::timestamptz)".to_owned()),
                (
                    "AND started_at > timestamptz 'epoch' + ((SELECT now FROM clock) - $4) * interval '1 microsecond'",
                    "AND $4::bigint > 0".to_owned(),
                ),
            ]
            .to_vec()
        };
        for (original, other) in replaced {
            assert!(text.contains(original), "`{original}` is not in the statements");
            text = text.replace(original, &other);
        }
    }
    let number = if sqlite { '?' } else { '$' };
    let tokens = format!("AND f.fencing_token = {number}2 AND s.fencing_token = {number}2");
    instead("prepaid-no-fencing-check", &mut text, &tokens, &format!("AND {number}2 > 0"));
    without("prepaid-no-notice-key", &mut text, NOTICE_KEY);
    if !sqlite {
        without("prepaid-no-wallet-lock", &mut text, "FOR NO KEY UPDATE OF w");
        without("prepaid-no-claim", &mut text, "FOR UPDATE OF d SKIP LOCKED");
        let claimed =
            "SET claimed_until = {present} + $4 * interval '1 microsecond', attempts = d.attempts + 1";
        instead(
            "prepaid-no-claim",
            &mut text,
            claimed,
            "SET claimed_until = NULL, attempts = d.attempts + 1 * ($4 > 0)::integer",
        );
    }
    text
}

const NOTICE_KEY: &str = "
ON CONFLICT (organization_id, episode, level) DO UPDATE
   SET event_id = excluded.event_id, passed = excluded.passed, created_at = excluded.created_at
 WHERE billing_notices.event_id IS NULL AND NOT billing_notices.passed AND (excluded.event_id IS NOT NULL OR excluded.passed)";
