SELECT 'instance ' || x.vps_instance_id || ': cycle ' || x.id || ' begins at ' || x.starts
       || ', before an earlier cycle ends at ' || x.ended || ': both were billed' AS detail
  FROM (SELECT y.id, y.vps_instance_id, {start} AS starts,
               max({end}) OVER (PARTITION BY y.vps_instance_id ORDER BY {start}, y.id
                                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS ended
          FROM vps_billing_cycles y WHERE y.status = 'billed' AND y.total_amount > 0) AS x
 WHERE {a_second_later} < x.ended
