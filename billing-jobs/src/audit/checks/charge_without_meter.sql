SELECT DISTINCT 'instance ' || c.instance_id || ' has charges and no meter' AS detail
  FROM billing_charges c
 WHERE NOT EXISTS (SELECT 1 FROM billing_meters m WHERE m.instance_id = c.instance_id)
