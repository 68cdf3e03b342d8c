SELECT 'charge of instance ' || instance_id || ' from ' || period_start || ': '
       || carried || ' carried, plus ' || hours || ' h at ' || rate || ' is not ' || amount
       || ' and ' || carry || ' carried on' AS detail
  FROM (SELECT c.*, coalesce(lag(c.carry) OVER (PARTITION BY c.instance_id ORDER BY c.period_start), 0)
                    AS carried
          FROM billing_charges c) AS x
 WHERE (NOT by_panel AND carried + {wide_rate} * hours <> {wide_amount} * 73000 + carry)
    OR (by_panel AND carry <> carried)
