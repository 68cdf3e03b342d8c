SELECT 'organization ' || organization_id || ' is ' || state || ' and wanted ' || desired || ', with a runway of '
       || coalesce(runway_hours || ' h', 'unknown length') || ', ' || coalesce(CAST(owed AS text), 'unknown') || ' owed and '
       || coalesce('level ' || level, 'no level') AS detail
  FROM billing_standings
 WHERE (state = 'unknown') <> (burn IS NULL)
    OR (state <> 'unknown' AND (state = 'suspended') <> (desired = 'suspended'))
    OR (state = 'ok' AND level IS NOT NULL)
    OR (state <> 'ok' AND NOT watched)
    OR (state = 'exhausted' AND coalesce(runway_hours, 1) >= 1)
    OR (state IN ('ok', 'low') AND owed > 0 AND runway_hours < 1)
