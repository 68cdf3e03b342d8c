-- Materialized, so that SQLite parses the metadata once.
WITH debits AS MATERIALIZED (
    SELECT t.id, t.amount, {balance_before} AS balance_before, {balance_after} AS balance_after
      FROM billing_charges c JOIN payment_transactions t ON t.id = c.payment_transaction_id
     WHERE NOT c.by_panel)
SELECT 'payment transaction ' || id || ': balance_before and balance_after do not differ by its amount' AS detail
  FROM debits
 WHERE ({before} + {amount} = {after}) IS NOT TRUE
