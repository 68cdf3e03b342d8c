SELECT 'instance ' || c.instance_id || ': the charge from ' || c.period_start
       || ' is not in payment_transactions with the same amount' AS detail
  FROM billing_charges c LEFT JOIN payment_transactions t ON t.id = c.payment_transaction_id
 WHERE (c.amount > 0 OR c.payment_transaction_id IS NOT NULL)
   AND (t.id IS NULL OR {amount} <> -c.amount OR t.organization_id <> c.organization_id
        OR (NOT c.by_panel AND coalesce(t.currency, 'XXX') <> c.currency))
   AND EXISTS (SELECT 1 FROM organizations o WHERE o.id = c.organization_id)
