-- Roles of least privilege: docs/how-to/least-privilege.md. They have no password yet.

CREATE ROLE longhaul_worker LOGIN;
GRANT USAGE ON SCHEMA worker TO longhaul_worker;
GRANT SELECT ON worker.schema_version TO longhaul_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON worker.run TO longhaul_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON worker.step TO longhaul_worker;
GRANT SELECT, INSERT, UPDATE ON worker.step_range TO longhaul_worker;
GRANT SELECT, INSERT, DELETE ON worker.quarantine TO longhaul_worker;
GRANT SELECT, INSERT, DELETE ON worker.skipped TO longhaul_worker;
GRANT SELECT, INSERT, DELETE ON worker.part TO longhaul_worker;
GRANT SELECT, INSERT ON worker.data_migration TO longhaul_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON worker.sample TO longhaul_worker;
GRANT SELECT, INSERT, UPDATE ON worker.run_log TO longhaul_worker;
GRANT SELECT, INSERT, DELETE ON worker.selection TO longhaul_worker;
GRANT SELECT, INSERT (run_id, job, queue, payload, due_at, priority, options), UPDATE (problem), DELETE ON worker.outbox TO longhaul_worker;
GRANT SELECT, INSERT, DELETE ON worker.operator_order TO longhaul_worker;
GRANT SELECT, INSERT, UPDATE ON worker.cron_firing TO longhaul_worker;
GRANT EXECUTE ON FUNCTION worker.enqueue(text, jsonb, text, interval, text, integer) TO longhaul_worker;

CREATE ROLE longhaul_client LOGIN;
GRANT USAGE ON SCHEMA worker TO longhaul_client;
GRANT EXECUTE ON FUNCTION worker.enqueue(text, jsonb, text, interval, text, integer) TO longhaul_client;
GRANT INSERT (run_id, job, queue, payload, due_at, priority, options) ON worker.outbox TO longhaul_client;

CREATE ROLE longhaul_enqueue LOGIN;
GRANT USAGE ON SCHEMA worker TO longhaul_enqueue;
GRANT EXECUTE ON FUNCTION worker.enqueue(text, jsonb, text, interval, text, integer) TO longhaul_enqueue;

CREATE ROLE longhaul_reader LOGIN;
GRANT USAGE ON SCHEMA worker TO longhaul_reader;
GRANT SELECT ON worker.schema_version TO longhaul_reader;
GRANT SELECT ON worker.run TO longhaul_reader;
GRANT SELECT ON worker.step TO longhaul_reader;
GRANT SELECT ON worker.step_range TO longhaul_reader;
GRANT SELECT ON worker.quarantine TO longhaul_reader;
GRANT SELECT ON worker.skipped TO longhaul_reader;
GRANT SELECT ON worker.part TO longhaul_reader;
GRANT SELECT ON worker.data_migration TO longhaul_reader;
GRANT SELECT ON worker.sample TO longhaul_reader;
GRANT SELECT ON worker.run_log TO longhaul_reader;
GRANT SELECT ON worker.outbox TO longhaul_reader;
GRANT SELECT ON worker.operator_order TO longhaul_reader;
GRANT SELECT ON worker.cron_firing TO longhaul_reader;
