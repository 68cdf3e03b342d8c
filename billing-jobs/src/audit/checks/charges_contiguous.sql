SELECT 'instance ' || x.instance_id || ': a charge ends at ' || x.ended || ' and the next begins at ' || x.starts AS detail
  FROM (SELECT s.instance_id, s.starts, s.charged_until IS NOT NULL AS is_charge, max(s.charged_until) OVER earlier AS ended,
               min(s.cycle_start) OVER earlier AS first_cycle, max(s.paid_until) OVER earlier AS paid_until
          FROM (SELECT c.instance_id, c.period_start AS starts, {end} AS charged_until, {no_time} AS cycle_start,
                       {no_time} AS paid_until
                  FROM billing_charges c
                UNION ALL
                SELECT y.vps_instance_id, {cycle_start}, {no_time}, {cycle_start},
                       CASE WHEN y.status IN ('billed', 'refunded') THEN {cycle_end} END
                  FROM vps_billing_cycles y WHERE {cycle_start} IS NOT NULL
                UNION ALL
                -- A run recorded that the instance was deleted; the next charge comes after it was restored.
                SELECT h.instance_id, h.closed_at, {no_time}, {no_time}, h.closed_at
                  FROM billing_holds h WHERE h.closed_reason = 'instance_deleted') AS s
        -- A charge comes before the cycle with the same start, which is not an earlier one.
        WINDOW earlier AS (PARTITION BY s.instance_id ORDER BY s.starts, s.charged_until IS NULL
                           ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)) AS x
  LEFT JOIN (SELECT instance_id, sum(hours_due) AS hours
               FROM billing_holds WHERE closed_reason = 'instance_transferred' GROUP BY instance_id) AS transferred
         ON transferred.instance_id = x.instance_id
 WHERE x.is_charge AND x.ended <> x.starts
   AND (x.ended > x.starts
        -- An instance that was deleted and restored has lost its earlier cycles, and with them what explains the gap.
        OR (x.first_cycle < x.ended
            -- The panel charged these hours, or an operator recorded that they are free of charge.
            AND (x.paid_until > x.ended) IS NOT TRUE
            -- The arrears of a previous organization were closed without a charge.
            AND {gap} > coalesce(transferred.hours, 0)))
