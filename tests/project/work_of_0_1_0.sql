-- The changes by version 0.1.0 to the rows of a set. Each statement changes one row; {n} is the number of the set.
-- A heartbeat, a new push token, and a push token that FCM calls dead.
UPDATE devices_presence SET last_seen_at = now(), last_status = '{"battery_pct": 82}', agent_version = '1.1'
WHERE device_id = '00000000-0000-7000-8000-00000000001{n}';
UPDATE devices_device SET push_token = 'other-{n}', push_token_dead_at = NULL WHERE push_token = 'push-{n}';
UPDATE devices_device SET push_token_dead_at = now() WHERE push_token = 'other-{n}' AND push_token_dead_at IS NULL;
-- A rotation, and the first use of the new token.
UPDATE devices_device SET next_hash = 'hash', next_digest = '\x01', next_digest_key = 'key', next_command_key_id = '',
    next_generation = 2, next_expires_at = now() + interval '1 day'
WHERE id = '00000000-0000-7000-8000-00000000001{n}';
UPDATE devices_device SET token_hash = next_hash, token_digest = next_digest, token_digest_key = next_digest_key,
    token_used_at = now(), generation = next_generation, next_hash = '', next_digest = NULL, next_digest_key = '',
    next_expires_at = NULL
WHERE next_hash = 'hash' AND hardware_id = 'hardware-{n}';
-- The claim of a push, the record of its answer, and the phone's final report.
UPDATE commands_delivery SET next_attempt_at = now() + interval '30 seconds', attempt_count = attempt_count + 1
WHERE id = 100{n} AND state = 'pending' AND push_state = 'waiting' AND next_attempt_at <= now();
UPDATE commands_attempt SET outcome = 'accepted', http_status = 200, message_id = 'm', latency_ms = 20,
    finished_at = now()
WHERE delivery_id = 100{n} AND number = 1 AND outcome = 'in_flight';
UPDATE commands_delivery SET push_state = 'accepted', failure_count = 0, next_attempt_at = NULL
WHERE id = 100{n} AND attempt_count = 1;
UPDATE commands_delivery SET state = 'succeeded', received_at = now(), reported_at = now(), settled_at = now(),
    delivered_via = 'push', next_attempt_at = NULL
WHERE id = 100{n} AND state IN ('pending', 'received');
UPDATE commands_command SET cancelled_at = now() WHERE id = '00000000-0000-7000-8000-00000000002{n}';
-- Tags, a revocation, and a token that is used and revoked.
UPDATE devices_device SET alias = NULL, tags = array_append(tags, 'lobby'), revoked_at = now()
WHERE hardware_id = 'hardware-{n}';
UPDATE devices_enrollmenttoken SET uses = uses + 1, revoked_at = now()
WHERE id = '00000000-0000-7000-8000-00000000000{n}';
UPDATE nexmdm_dispatcherseen SET last_seen_at = now(), circuit = 'open', circuit_reason = 'x' WHERE name = 'host:{n}';
-- Retention, and a dispatcher that ends.
DELETE FROM commands_report WHERE delivery_id = 100{n};
DELETE FROM commands_attempt WHERE delivery_id = 100{n};
DELETE FROM commands_delivery WHERE id = 100{n};
DELETE FROM commands_command WHERE id = '00000000-0000-7000-8000-00000000002{n}';
DELETE FROM devices_deadpushtoken WHERE sha256 = sha256('push-{n}');
DELETE FROM nexmdm_storedanswer WHERE principal = 'admin' AND key = 'key-{n}';
DELETE FROM nexmdm_dispatcherseen WHERE name = 'host:{n}';
