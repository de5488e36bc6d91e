-- The latest turn that a job of the queue has come to, never earlier than before; kept as that of the tenant `:present`.
--
-- New: where several jobs ended in one millisecond, all of them are read, rather than any one.
CREATE OR REPLACE FUNCTION queue_state.present_turn(line queue_state.numberings) RETURNS bigint
LANGUAGE plpgsql SET enable_seqscan TO off AS $$
DECLARE
  present bigint;
  reached bigint;
BEGIN
  SELECT last_turn INTO present FROM queue_state.tenant_turns WHERE queue = line.queue AND tenant_id = ':present';
  SELECT max(CASE WHEN priority % 2 = line.numbering % 2 THEN line.base ELSE line.former END + priority / 2)
    INTO reached
    FROM (
      (SELECT priority FROM job WHERE queue = line.queue AND state = 'waiting' AND priority > 1
        ORDER BY priority, seq LIMIT 1)
      UNION ALL SELECT priority FROM job WHERE queue = line.queue AND state = 'active'
      UNION ALL (SELECT priority FROM job WHERE queue = line.queue AND state = 'completed'
        ORDER BY finished_at_ms DESC FETCH FIRST 1 ROW WITH TIES)
    ) AS seen WHERE priority > 1;
  reached := greatest(reached, line.base + 1);
  IF present IS NULL OR reached > present THEN
    INSERT INTO queue_state.tenant_turns AS t (queue, tenant_id, last_turn) VALUES (line.queue, ':present', reached)
      ON CONFLICT (queue, tenant_id) DO UPDATE SET last_turn = greatest(t.last_turn, reached)
      RETURNING last_turn INTO present;
  END IF;
  RETURN present;
END $$;
