SELECT 'event ' || e.id || ' (' || e.type || ') has ' || count(d.event_id) || ' deliveries, and ' || e.endpoints
       || ' endpoints were to receive it' AS detail
  FROM billing_events e LEFT JOIN billing_deliveries d ON d.event_id = e.id
 GROUP BY e.id, e.type, e.endpoints
HAVING count(d.event_id) < e.endpoints
