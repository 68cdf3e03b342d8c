SELECT 'instance ' || instance_id || ': a charge ends at ' || ended || ' and the next begins at ' || period_start AS detail
  FROM (SELECT c.instance_id, c.period_start,
               lag({end}) OVER (PARTITION BY c.instance_id ORDER BY c.period_start) AS ended
          FROM billing_charges c) AS x
 WHERE ended > period_start
    OR (ended < period_start
        -- An instance that was deleted and restored has lost its earlier cycles, and with them what explains the gap.
        AND EXISTS (SELECT 1 FROM vps_billing_cycles y
                     WHERE y.vps_instance_id = x.instance_id AND {cycle_start} < x.ended)
        -- The panel charged these hours, or an operator recorded that they are free of charge.
        AND NOT EXISTS (SELECT 1 FROM vps_billing_cycles y
                         WHERE y.vps_instance_id = x.instance_id AND y.status IN ('billed', 'refunded')
                           AND {cycle_start} < x.period_start AND {cycle_end} > x.ended)
        -- The arrears of a previous organization were closed without a charge.
        AND {gap} > (SELECT coalesce(sum(h.hours_due), 0) FROM billing_holds h
                      WHERE h.instance_id = x.instance_id AND h.closed_reason = 'instance_transferred'))
