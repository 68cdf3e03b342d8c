SELECT 'instance ' || i.id || ' had hours due at the last finished run and is neither charged nor held' AS detail
  FROM vps_instances i
  JOIN billing_batches b ON b.id = {last_run}
  LEFT JOIN billing_meters m ON m.instance_id = i.id
 WHERE {start} <= {an_hour_before}
   -- A run reads only instances whose anchor is an hour old: after a rebuild it charges from the watermark, but later.
   AND {anchor} <= {an_hour_before}
   AND NOT {is_unseen}
   AND NOT EXISTS (SELECT 1 FROM billing_holds h WHERE h.instance_id = i.id AND h.closed_at IS NULL)
