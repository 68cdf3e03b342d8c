SELECT 'batch ' || x.id || ': its row has ' || sum(x.charges) || ' charges of ' || sum(x.instances)
       || ' instances, ' || sum(x.hours) || ' h, ' || sum(x.amount) || ' ' || x.currency
       || ' more than its charges' AS detail
  FROM (SELECT b.id, 'in all' AS currency, b.charges, b.instances, b.hours, 0 AS amount FROM billing_batches b
        UNION ALL
        SELECT c.batch_id, 'in all', -count(*), -count(DISTINCT c.instance_id), -sum(c.hours), 0
          FROM billing_charges c GROUP BY c.batch_id
        UNION ALL
        SELECT b.id, e.key, {charges}, 0, {hours}, {amount} FROM billing_batches b, {each} e
        UNION ALL
        SELECT c.batch_id, c.currency, -count(*), 0, -sum(c.hours), -sum(c.amount)
          FROM billing_charges c GROUP BY c.batch_id, c.currency) AS x
 WHERE EXISTS (SELECT 1 FROM billing_batches b WHERE b.id = x.id)
 GROUP BY x.id, x.currency
HAVING sum(x.charges) <> 0 OR sum(x.instances) <> 0 OR sum(x.hours) <> 0 OR sum(x.amount) <> 0
