-- A row of each table, as version 0.1.0 writes it, with only the columns of that version. {n} is the number of the set.
INSERT INTO devices_enrollmenttoken (id, token_sha256, label, tags, re_enroll, max_uses, uses, expires_at, revoked_at)
VALUES ('00000000-0000-7000-8000-00000000000{n}', '\x00', '', '{}', false, 1, 0, now() + interval '1 day', NULL);
INSERT INTO devices_device (
    id, hardware_id, alias, tags, manufacturer, model, os_version, push_token, push_token_dead_at, token_hash,
    token_digest, token_digest_key, token_used_at, command_key_id, generation, next_hash, next_digest, next_digest_key,
    next_command_key_id, next_generation, next_expires_at, enrolled_with_id, revoked_at
) VALUES (
    '00000000-0000-7000-8000-00000000001{n}', 'hardware-{n}', 'alias-{n}', '{floor-2}', '', '', '', 'push-{n}', NULL,
    '', NULL, '', NULL, '', 1, '', NULL, '', '', 1, NULL, '00000000-0000-7000-8000-00000000000{n}', NULL
);
INSERT INTO devices_presence (device_id, last_seen_at, last_status, agent_version)
VALUES ('00000000-0000-7000-8000-00000000001{n}', now(), '{"battery_pct": 83}', '');
INSERT INTO devices_deadpushtoken (sha256) VALUES (sha256('push-{n}'));
INSERT INTO commands_command (
    id, action, params, priority, target, note, issued_by, issued_at, expires_at, device_count, cancelled_at
) VALUES (
    '00000000-0000-7000-8000-00000000002{n}', 'ping', '{}', 'high', '{"all": true}', '', 'admin', now(),
    now() + interval '10 minutes', 1, NULL
);
INSERT INTO commands_delivery (
    id, command_id, device_id, state, open_until, received_at, reported_at, settled_at, delivered_via, push_state,
    attempt_count, failure_count, next_attempt_at
) VALUES (
    100{n}, '00000000-0000-7000-8000-00000000002{n}', '00000000-0000-7000-8000-00000000001{n}', 'pending', now(),
    NULL, NULL, NULL, NULL, 'waiting', 0, 0, now()
);
INSERT INTO commands_attempt (
    delivery_id, number, outcome, http_status, fcm_error, message_id, latency_ms, detail, finished_at
) VALUES (100{n}, 1, 'in_flight', NULL, '', '', NULL, '', NULL);
INSERT INTO commands_report (delivery_id, status, message, output, via, device_finished_at, late, duplicate)
VALUES (100{n}, 'succeeded', '', NULL, 'push', now(), false, false);
INSERT INTO nexmdm_storedanswer (principal, key, fingerprint, status, body)
VALUES ('admin', 'key-{n}', '\x00', 200, '{}');
INSERT INTO nexmdm_auditentry (
    principal, address, method, path, body_sha256, status, code, request_id, correlation_id
) VALUES ('admin', '127.0.0.1', 'POST', '/admin/command', '', 200, '', NULL, 'c-{n}');
INSERT INTO nexmdm_dispatcherseen (name, circuit, circuit_reason) VALUES ('host:{n}', 'closed', '');
