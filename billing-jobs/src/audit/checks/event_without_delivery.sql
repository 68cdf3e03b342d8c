SELECT 'event ' || e.id || ' (' || e.type || ') has ' || coalesce(d.made, 0) || ' deliveries, and ' || e.endpoints
       || ' endpoints were to receive it' AS detail
  FROM billing_events e
  LEFT JOIN (SELECT event_id, count(*) AS made FROM billing_deliveries GROUP BY event_id) AS d ON d.event_id = e.id
 WHERE coalesce(d.made, 0) < e.endpoints
