SELECT 'organization ' || s.organization_id || ' is suspended by order ' || s.order_number || ', and ' || count(n.delivered_at)
       || ' notices of episode ' || s.episode || ' were delivered before, two are needed, the first six hours before' AS detail
  FROM billing_standings s
  LEFT JOIN billing_notices n
         ON n.organization_id = s.organization_id AND n.episode = s.episode AND n.delivered_at <= s.since
 WHERE s.state = 'suspended'
 GROUP BY s.organization_id, s.order_number, s.episode, s.since
HAVING count(n.delivered_at) < 2 OR min(n.delivered_at) > s.since - {six_hours}
