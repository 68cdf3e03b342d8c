SELECT 'instance ' || m.instance_id || ': the meter carries ' || m.carry || ', its last charge '
       || coalesce(CAST(c.carry AS TEXT), 'nothing') AS detail
  FROM billing_meters m
  LEFT JOIN (SELECT instance_id, max(period_start) AS period_start FROM billing_charges GROUP BY instance_id) AS newest
         ON newest.instance_id = m.instance_id
  LEFT JOIN billing_charges c ON c.period_start = newest.period_start AND c.instance_id = newest.instance_id
 WHERE m.carry <> coalesce(c.carry, 0)
