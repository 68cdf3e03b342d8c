SELECT 'organization ' || s.organization_id || ': its newest order ' || s.epoch || ' (' || s.desired || ') has no event' AS detail
  FROM billing_standings s
 WHERE s.epoch > 0
   AND NOT EXISTS (SELECT 1 FROM billing_events e
                    WHERE e.organization_id = s.organization_id AND e.epoch = s.epoch
                      AND e.type = CASE s.desired WHEN 'suspended' THEN 'billing.service.suspend' ELSE 'billing.service.resume' END)
