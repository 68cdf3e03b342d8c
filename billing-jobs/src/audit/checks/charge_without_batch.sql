SELECT DISTINCT 'charges of batch ' || c.batch_id || ', which has no row' AS detail
  FROM billing_charges c
 WHERE NOT EXISTS (SELECT 1 FROM billing_batches b WHERE b.id = c.batch_id)
