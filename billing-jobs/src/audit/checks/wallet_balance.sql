SELECT 'wallet ' || b.wallet_id || ': the balance changed by '
       || coalesce(CAST({balance} - b.opening_balance AS TEXT), 'an amount that is not known')
       || ' ten-thousandths since it was first charged, the ledger by ' || (b.ledger - b.opening_ledger) AS detail
  FROM (SELECT b.*, coalesce((SELECT sum({amount}) FROM payment_transactions t
                               WHERE t.organization_id = b.organization_id AND t.status = 'completed'
                                 AND {is_amount}), 0) AS ledger
          FROM billing_wallet_openings b) AS b
  JOIN wallets w ON w.id = b.wallet_id
 WHERE w.balance IS NULL
    -- The panel books a refund as a separate row, with the status `refunded` of what is refunded, or both.
    OR ({unexplained} <> 0
        AND ({unexplained} > (SELECT coalesce(sum({amount}), 0) FROM payment_transactions t
                               WHERE t.organization_id = b.organization_id AND t.status = 'refunded' AND t.amount > 0
                                 AND {is_amount})
             OR {unexplained} < (SELECT coalesce(sum({amount}), 0) FROM payment_transactions t
                                  WHERE t.organization_id = b.organization_id AND t.status = 'refunded' AND t.amount < 0
                                    AND {is_amount})))
