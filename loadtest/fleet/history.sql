-- A month of work for the existing fleet: %(deliveries)s deliveries, with their attempts and reports, all in the order
-- in which they would have come. Half of the deliveries belong to commands for a single device, half to commands for a
-- thousand devices. Chance is a hash, so that two seedings of the same fleet are equal.

SET LOCAL statement_timeout = 0;

CREATE TEMPORARY TABLE fleet ON COMMIT DROP AS
    SELECT row_number() OVER (ORDER BY id) - 1 AS place, id FROM devices_device WHERE revoked_at IS NULL;
CREATE INDEX ON fleet (place);
ANALYZE fleet;

CREATE TEMPORARY TABLE mix ON COMMIT DROP AS
    SELECT devices, wide_size, wide, wide + %(deliveries)s - wide * wide_size AS commands
    FROM (SELECT count(*) AS devices, least(count(*), 1000) AS wide_size FROM fleet) counted,
        LATERAL (SELECT %(deliveries)s / 2 / wide_size AS wide) halved;

CREATE TEMPORARY TABLE plan ON COMMIT DROP AS
    SELECT
        number, size, at, at > now() - interval '1 hour' AS recent,
        (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0')
            || '7' || substr(chance, 1, 3) || '8' || substr(chance, 4, 15))::uuid AS id,
        CASE
            WHEN mod(number, 10007) = 0 THEN 'reboot'
            WHEN mod(number, 20) < 10 THEN 'ping'
            WHEN mod(number, 20) < 17 THEN 'launch_app'
            WHEN mod(number, 20) < 19 THEN 'message'
            ELSE 'ring'
        END AS action
    FROM mix, generate_series(0, commands - 1) AS number,
        LATERAL (
            SELECT
                CASE
                    WHEN mod(number, commands / nullif(wide, 0)) = 0 AND number / (commands / nullif(wide, 0)) < wide
                        THEN wide_size
                    ELSE 1
                END AS size,
                now() - interval '30 days' * ((commands - number)::float / commands) AS at,
                md5(number::text) AS chance
        ) AS drawn;
ANALYZE plan;

INSERT INTO commands_command (
    id, action, params, priority, target, note, issued_by, issued_at, expires_at, device_count, cancelled_at
)
    SELECT
        id, action, '{}', 'high', '{"all": true}', 'seeded', 'admin', date_trunc('second', at),
        date_trunc('second', at) + CASE WHEN recent THEN interval '1 day' ELSE interval '10 minutes' END, size,
        CASE WHEN mod(number, 997) = 0 THEN at + interval '1 minute' END
    FROM plan ORDER BY number;

-- The last two digits of a delivery's chance choose the result of its push; the other digits choose its state.
CREATE TEMPORARY TABLE work ON COMMIT DROP AS
    SELECT
        plan.number, plan.id AS command, fleet.id AS device, plan.at, plan.recent,
        mod(hashint8(plan.number * 1000003 + nth)::bigint + 2147483648, 100000) AS chance
    FROM mix, plan, generate_series(0, plan.size - 1) AS nth, fleet
    WHERE fleet.place = mod(plan.number * 7919 + nth, mix.devices);
ANALYZE work;

INSERT INTO commands_delivery (
    command_id, device_id, state, open_until, received_at, reported_at, settled_at, delivered_via, push_state,
    attempt_count, failure_count
)
    SELECT
        command, device, state, at + CASE WHEN recent THEN interval '1 day' ELSE interval '10 minutes' END,
        CASE WHEN state IN ('received', 'succeeded', 'failed') THEN at + interval '2 seconds' END,
        CASE WHEN state IN ('received', 'succeeded', 'failed') THEN at + interval '2 seconds' END,
        CASE state
            WHEN 'succeeded' THEN at + interval '2 seconds'
            WHEN 'failed' THEN at + interval '2 seconds'
            WHEN 'expired' THEN at + interval '10 minutes'
            WHEN 'cancelled' THEN at + interval '1 minute'
        END,
        CASE WHEN state IN ('received', 'succeeded', 'failed') THEN 'push' END,
        CASE WHEN mod(chance, 100) IN (96, 97) THEN 'undeliverable' ELSE 'accepted' END,
        CASE WHEN mod(chance, 100) IN (92, 93, 94, 95, 98, 99) THEN 2 ELSE 1 END,
        CASE WHEN mod(chance, 100) IN (92, 93, 94, 95, 98, 99) THEN 1 ELSE 0 END
    FROM work,
        LATERAL (
            SELECT CASE
                WHEN chance < 30000 THEN 'succeeded'
                WHEN recent AND chance < 60000 THEN 'pending'
                WHEN recent THEN 'received'
                WHEN chance < 80000 THEN 'succeeded'
                WHEN chance < 86000 THEN 'failed'
                WHEN chance < 97000 THEN 'expired'
                ELSE 'cancelled'
            END AS state
        ) AS became
    ORDER BY number, device;

INSERT INTO commands_attempt (
    delivery_id, number, outcome, http_status, fcm_error, message_id, latency_ms, detail, started_at, finished_at
)
    SELECT
        delivery.id, push.number, push.outcome, push.http_status, push.fcm_error,
        CASE WHEN push.http_status = 200 THEN 'projects/seeded/messages/' || delivery.id ELSE '' END,
        20 + mod(chance, 60), push.detail, at + push.after, at + push.after + interval '40 milliseconds'
    FROM work
    JOIN commands_delivery AS delivery ON delivery.command_id = work.command AND delivery.device_id = work.device,
        LATERAL (
            SELECT 1, 'accepted', 200, '', '', interval '0.2 seconds'
            WHERE mod(chance, 100) < 92 AND chance <> 7
            UNION ALL SELECT 1, 'rejected', 400, 'INVALID_ARGUMENT', 'seeded', interval '0.2 seconds' WHERE chance = 7
            UNION ALL SELECT 1, 'retry_later', 503, 'UNAVAILABLE', '', interval '0.2 seconds'
            WHERE mod(chance, 100) BETWEEN 92 AND 95
            UNION ALL SELECT 1, 'token_dead', 404, 'UNREGISTERED', '', interval '0.2 seconds'
            WHERE mod(chance, 100) IN (96, 97)
            UNION ALL SELECT 1, 'retry_later', 429, 'QUOTA_EXCEEDED', '', interval '0.2 seconds'
            WHERE mod(chance, 100) = 98
            UNION ALL SELECT 1, 'unknown', NULL, '', 'no answer', interval '0.2 seconds' WHERE mod(chance, 100) = 99
            UNION ALL SELECT 2, 'accepted', 200, '', '', interval '15 seconds'
            WHERE mod(chance, 100) IN (92, 93, 94, 95, 98, 99)
        ) AS push (number, outcome, http_status, fcm_error, detail, after)
    ORDER BY at + push.after;

INSERT INTO commands_report (delivery_id, status, message, output, via, device_finished_at, reported_at, late, duplicate)
    SELECT
        delivery.id, delivery.state, '', '{"seeded": true}', 'push', delivery.reported_at, delivery.reported_at, false, false
    FROM work
    JOIN commands_delivery AS delivery ON delivery.command_id = work.command AND delivery.device_id = work.device
    WHERE delivery.state IN ('received', 'succeeded', 'failed')
    ORDER BY delivery.reported_at;
