SELECT 'instance ' || c.instance_id || ': the charge from ' || c.period_start
       || ' begins before the instance or ends in the future' AS detail
  FROM billing_charges c
  LEFT JOIN vps_instances i ON i.id = c.instance_id
  LEFT JOIN billing_meters m ON m.instance_id = c.instance_id
 WHERE {end} > {now}
    -- With a meter the watermark decides: a rebuild that moves `created_at` past the opening of the meter changes nothing.
    OR ({a_second_after_start} <= {created} AND {created} <= m.opened_at
        AND NOT EXISTS (SELECT 1 FROM vps_billing_cycles y
                         WHERE y.vps_instance_id = c.instance_id AND y.status = 'refunded'
                           AND {cycle_start} = {charge_start}))
