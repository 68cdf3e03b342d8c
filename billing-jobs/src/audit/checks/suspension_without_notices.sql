SELECT 'organization ' || s.organization_id || ' is suspended by order ' || s.epoch || ', and '
       || (SELECT count(*) FROM billing_notices n
            WHERE n.organization_id = s.organization_id AND n.episode = s.episode AND n.delivered_at IS NOT NULL)
       || ' notices of episode ' || s.episode || ' were delivered' AS detail
  FROM billing_standings s
 WHERE s.state = 'suspended' AND s.desired = 'suspended'
   AND (SELECT count(*) FROM billing_notices n
         WHERE n.organization_id = s.organization_id AND n.episode = s.episode AND n.delivered_at IS NOT NULL) < 2
