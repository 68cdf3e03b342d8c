SELECT 'instance ' || c.instance_id || ': the charge from ' || c.period_start
       || ' has no billed or refunded cycle with the same start and amount' AS detail
  FROM billing_charges c
  JOIN vps_instances i ON i.id = c.instance_id
  {join_cycle}
 WHERE {has_no_cycle}
   -- The panel has debited and not yet written its cycle.
   AND NOT (c.by_panel AND {panels_anchor} < {panels_end})
   -- An instance that was deleted and restored has lost its earlier cycles.
   AND EXISTS (SELECT 1 FROM vps_billing_cycles e
                WHERE e.vps_instance_id = c.instance_id AND {earlier_start} <= {charge_start})
