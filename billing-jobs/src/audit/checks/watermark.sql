SELECT 'instance ' || m.instance_id || ': the meter is at ' || m.billed_through
       || ', charges reach ' || coalesce(CAST(c.ended AS TEXT), 'nothing') || ', the anchor of the panel is '
       || coalesce(CAST({anchor} AS TEXT), 'nothing') AS detail
  FROM billing_meters m
  LEFT JOIN (SELECT instance_id, max({end}) AS ended, max(CASE WHEN by_panel THEN {end} END) AS panel_ended
               FROM billing_charges c GROUP BY instance_id) c
         ON c.instance_id = m.instance_id
  LEFT JOIN vps_instances i ON i.id = m.instance_id
  LEFT JOIN billing_batches b ON b.id = {last_run}
  LEFT JOIN billing_holds h ON h.instance_id = m.instance_id AND h.closed_at IS NULL AND h.reason IN ('invalid_time', 'failed')
 WHERE m.billed_through < c.ended
    OR ({panels_anchor} < {panels_watermark}
        -- The panel has debited and not yet moved its anchor.
        AND {panels_anchor} >= coalesce({panels_last}, {panels_anchor})
        -- The last run did not read the instance, which had no whole hour since its anchor, or could not see it as it is.
        AND NOT ({anchor} > {an_hour_before} AND m.billed_through <= b.as_of)
        AND NOT {is_unseen}
        -- Billing leaves the anchor of such an instance alone.
        AND h.id IS NULL)
