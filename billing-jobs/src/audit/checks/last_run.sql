(SELECT f.id FROM billing_batches f
  WHERE f.run_id = (SELECT l.run_id FROM billing_batches l
                      JOIN scheduler_runs r ON r.id = l.run_id AND r.status = 'done'
                     ORDER BY l.id DESC LIMIT 1)
  ORDER BY f.id LIMIT 1)
