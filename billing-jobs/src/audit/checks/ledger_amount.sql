SELECT 'payment transaction ' || t.id || ': ' || coalesce(CAST(t.amount AS TEXT), 'NULL')
       || ' is not an amount that a wallet can hold; the sums of the ledger leave it out' AS detail
  FROM payment_transactions t
 WHERE t.status = 'completed' AND (t.amount IS NULL OR NOT {is_amount})
