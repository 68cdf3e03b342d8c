SELECT 'cycle ' || y.id || ': there is no payment transaction ' || y.payment_transaction_id AS detail
  FROM vps_billing_cycles y
 WHERE y.payment_transaction_id IS NOT NULL
   AND NOT EXISTS (SELECT 1 FROM payment_transactions t WHERE t.id = y.payment_transaction_id)
UNION ALL
-- The cycles of a deleted instance remain, and so does its meter.
SELECT 'cycle ' || y.id || ': there is and was no instance ' || y.vps_instance_id
  FROM vps_billing_cycles y
 WHERE NOT EXISTS (SELECT 1 FROM vps_instances i WHERE i.id = y.vps_instance_id)
   AND NOT EXISTS (SELECT 1 FROM billing_meters m WHERE m.instance_id = y.vps_instance_id)
