SELECT 'organization ' || x.organization_id || ': its wallet was charged and has no opening balance' AS detail
  FROM (SELECT organization_id FROM billing_charges WHERE payment_transaction_id IS NOT NULL AND NOT by_panel
        INTERSECT
        SELECT organization_id FROM wallets
        EXCEPT
        SELECT organization_id FROM billing_wallet_openings) AS x
