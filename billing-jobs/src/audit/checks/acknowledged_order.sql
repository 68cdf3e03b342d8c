SELECT 'organization ' || organization_id || ': order ' || acked_order || ' is acknowledged, and the newest one is '
    || order_number AS detail
  FROM billing_standings
 WHERE acked_order > order_number
