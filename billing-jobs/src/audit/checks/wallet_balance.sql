SELECT 'wallet ' || x.wallet_id || ': the balance changed by '
       || coalesce(CAST(x.of_balance AS TEXT), 'an amount that is not known')
       || ' ten-thousandths since it was first charged, the ledger by ' || x.of_ledger AS detail
  FROM (SELECT b.wallet_id, {balance} - b.opening_balance AS of_balance, coalesce(t.completed, 0) - b.opening_ledger AS of_ledger,
               coalesce(t.refunds, 0) AS refunds, coalesce(t.reversals, 0) AS reversals
          FROM billing_wallet_openings b
          JOIN wallets w ON w.id = b.wallet_id
          LEFT JOIN (SELECT t.organization_id,
                            sum(CASE WHEN t.status = 'completed' THEN {amount} ELSE 0 END) AS completed,
                            sum(CASE WHEN t.status = 'refunded' AND t.amount > 0 THEN {amount} ELSE 0 END) AS refunds,
                            sum(CASE WHEN t.status = 'refunded' AND t.amount < 0 THEN {amount} ELSE 0 END) AS reversals
                       FROM payment_transactions t WHERE {is_amount} GROUP BY t.organization_id) AS t
                 ON t.organization_id = b.organization_id) AS x
 WHERE x.of_balance IS NULL
    -- The panel books a refund as a separate row, with the status `refunded` of what is refunded, or both.
    OR x.of_balance - x.of_ledger NOT BETWEEN x.reversals AND x.refunds
