SELECT DISTINCT 'organization ' || c.organization_id || ': its wallet was charged and has no opening balance'
       AS detail
  FROM billing_charges c JOIN wallets w ON w.organization_id = c.organization_id
 WHERE c.payment_transaction_id IS NOT NULL AND NOT c.by_panel
   AND NOT EXISTS (SELECT 1 FROM billing_wallet_openings b WHERE b.organization_id = c.organization_id)
