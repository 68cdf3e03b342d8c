SELECT 'instance ' || c.instance_id || ': the charge from ' || c.period_start
       || ' begins before the instance or ends in the future' AS detail
  FROM billing_charges c
  LEFT JOIN vps_instances i ON i.id = c.instance_id
  LEFT JOIN billing_meters m ON m.instance_id = c.instance_id
  LEFT JOIN (SELECT DISTINCT y.vps_instance_id AS instance_id, {cycle_start} AS starts
               FROM vps_billing_cycles y WHERE y.status = 'refunded') AS refunded
         ON refunded.instance_id = c.instance_id AND refunded.starts = {charge_start}
 WHERE {end} > {now}
    -- With a meter the watermark decides: a rebuild that moves `created_at` past the opening of the meter changes nothing.
    OR ({a_second_after_start} <= {created} AND {created} <= m.opened_at AND refunded.starts IS NULL)
