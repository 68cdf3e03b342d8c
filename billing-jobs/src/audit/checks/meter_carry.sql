SELECT 'instance ' || m.instance_id || ': the meter carries ' || m.carry || ', its last charge '
       || coalesce(CAST(c.carry AS TEXT), 'nothing') AS detail
  FROM billing_meters m
  LEFT JOIN (SELECT instance_id, carry,
                    row_number() OVER (PARTITION BY instance_id ORDER BY period_start DESC) AS age
               FROM billing_charges) c ON c.instance_id = m.instance_id AND c.age = 1
 WHERE m.carry <> coalesce(c.carry, 0)
