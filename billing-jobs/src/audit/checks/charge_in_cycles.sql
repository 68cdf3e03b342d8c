SELECT 'instance ' || x.instance_id || ': the charge from ' || x.period_start
       || ' has no billed or refunded cycle with the same start and amount' AS detail
  FROM (SELECT s.instance_id, s.starts, max(s.period_start) AS period_start, max(s.panel_ended) AS panel_ended
          FROM (SELECT c.instance_id, {charge_start} AS starts, {charge_amount} AS amount, c.period_start,
                       CASE WHEN c.by_panel THEN {panels_end} END AS panel_ended, 0 AS cycles
                  FROM billing_charges c
                UNION ALL
                SELECT y.vps_instance_id, {cycle_start}, {cycle_amount}, {no_time}, {no_time}, 1
                  FROM vps_billing_cycles y WHERE y.status IN ('billed', 'refunded')) AS s
         GROUP BY s.instance_id, s.starts, s.amount
        HAVING sum(s.cycles) = 0) AS x
  JOIN vps_instances i ON i.id = x.instance_id
  -- An instance that was deleted and restored has lost its earlier cycles.
  JOIN (SELECT y.vps_instance_id AS instance_id, min({cycle_start}) AS starts
          FROM vps_billing_cycles y GROUP BY y.vps_instance_id) AS first_cycle
    ON first_cycle.instance_id = x.instance_id AND first_cycle.starts <= x.starts
 -- The panel has debited and not yet written its cycle.
 WHERE x.panel_ended IS NULL OR {panels_anchor} >= x.panel_ended
