SELECT 'organization ' || s.organization_id || ': its newest order ' || s.order_number || ' ('
    || s.desired || ') has no event' AS detail
  FROM billing_standings s
 WHERE s.order_number > 0
   AND NOT EXISTS (SELECT 1 FROM billing_events e
                    WHERE e.organization_id = s.organization_id AND e.order_number = s.order_number
                      AND e.type = CASE s.desired WHEN 'suspended' THEN 'billing.service.suspend' ELSE 'billing.service.resume' END)
