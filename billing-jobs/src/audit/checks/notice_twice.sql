SELECT 'organization ' || organization_id || ' has ' || count(*) || ' notices of level ' || level || ' in episode ' || episode AS detail
  FROM billing_notices
 GROUP BY organization_id, episode, level
HAVING count(*) > 1
UNION ALL
SELECT 'event ' || e.id || ' (' || e.type || ') of organization ' || e.organization_id || ' repeats a notice: no row of billing_notices has it'
  FROM billing_events e LEFT JOIN billing_notices n ON n.organization_id = e.organization_id AND n.event_id = e.id
 WHERE e.type IN ('billing.wallet.low', 'billing.wallet.exhausted', 'billing.wallet.final_notice') AND n.event_id IS NULL
