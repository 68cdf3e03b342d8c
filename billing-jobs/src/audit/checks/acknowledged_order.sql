SELECT 'organization ' || organization_id || ': order ' || acked_epoch || ' is acknowledged, and the newest one is ' || epoch AS detail
  FROM billing_standings
 WHERE acked_epoch > epoch
