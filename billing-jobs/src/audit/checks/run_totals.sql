SELECT 'run ' || x.id || ': its row has ' || sum(x.charged) || ' instances, ' || sum(x.hours) || ' h, '
       || sum(x.amount) || ' ten-thousandths ' || x.currency || ' more than its batches' AS detail
  FROM (SELECT r.id, 'in all' AS currency, coalesce({charged}, -1) AS charged,
               r.items AS items, coalesce({hours}, -1) AS hours, 0 AS amount
          FROM scheduler_runs r WHERE r.job = $1 AND r.status = 'done'
        UNION ALL
        SELECT b.run_id, 'in all', -b.instances, -b.instances, -b.hours, 0 FROM billing_batches b
        UNION ALL
        SELECT r.id, e.key, 0, 0, {of_currency_hours}, {of_currency_amount}
          FROM scheduler_runs r, {of_run} e WHERE r.job = $1 AND r.status = 'done'
        UNION ALL
        SELECT b.run_id, e.key, 0, 0, -{batch_hours}, -{batch_amount} FROM billing_batches b, {of_batch} e) AS x
 WHERE EXISTS (SELECT 1 FROM scheduler_runs r WHERE r.id = x.id AND r.job = $1 AND r.status = 'done')
 GROUP BY x.id, x.currency
HAVING sum(x.charged) <> 0 OR sum(x.items) <> 0 OR sum(x.hours) <> 0 OR sum(x.amount) <> 0
