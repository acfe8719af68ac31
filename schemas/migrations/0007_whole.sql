-- Calls that were over before their host read them: one record, a *whole* decision, says what else a decision and its effect say. It
-- lets the call out (verdict 1) and has an outcome other than 0; in its address the one that was dialled stands behind the client's
-- and char 31. Nothing follows it, so the join finds nothing for it. It ended when it was made and as long after as it took.
CREATE OR REPLACE VIEW {database}.calls AS
WITH d.verdict = 1 AND d.outcome != 0 AS whole
SELECT
    lower(concat(leftPad(hex(d.boot), 16, '0'), leftPad(hex(d.call_seq), 16, '0'))) AS call_id,
    d.boot AS boot,
    d.call_seq AS seq,
    d.time AS time,
    d.recorded AS recorded,
    multiIf(whole, addMicroseconds(d.time, d.duration_us), ifNull(e.ends, 0) = 0, NULL, e.ended) AS ended,
    d.door AS door,
    d.tenant AS tenant,
    d.session AS session,
    d.agent AS agent,
    d.root AS root,
    if(d.chain = '', [], splitByChar('\x1F', toString(d.chain))) AS chain,
    d.depth AS depth,
    if(d.assurance = '', [], splitByChar('\x1F', toString(d.assurance))) AS assurance,
    d.credential AS credential,
    d.proof AS proof,
    d.action AS action,
    d.resource AS resource,
    d.scheme AS scheme,
    d.host AS host,
    d.domain AS domain,
    if(whole, substring(d.address, length(client) + 2), ifNull(e.address, '')) AS address,
    substringIndex(d.address, '\x1F', 1) AS client,
    d.path AS path,
    if(if(ifNull(e.speaks, 0), ifNull(e.verdict, 0), d.verdict) = 1, 'allow', 'deny') AS verdict,
    ['enforce', 'shadow', 'best_effort'][d.mode + 1] AS mode,
    if(d.policies = '', [], splitByChar('\x1F', toString(d.policies))) AS policies,
    if(ifNull(e.reason, '') != '', ifNull(e.reason, ''), toString(d.reason)) AS reason,
    d.policy_digest AS policy_digest,
    d.epoch AS epoch,
    if(verdict = 'deny' AND ifNull(e.ends, 0) = 0, 'refused',
        ['', 'ok', 'error', 'refused', 'lost'][if(whole, d.outcome, ifNull(e.outcome, 0)) + 1]) AS outcome,
    if(whole, d.status, ifNull(e.status, 0)) AS status,
    ifNull(e.error, '') AS error,
    greatest(d.bytes_out, ifNull(e.bytes_out, 0)) AS bytes_out,
    greatest(d.bytes_in, ifNull(e.bytes_in, 0)) AS bytes_in,
    greatest(d.duration_us, ifNull(e.duration_us, 0)) / 1000 AS duration_ms,
    d.query_hash AS query_hash,
    d.query_bytes AS query_bytes,
    d.query_bits AS query_bits,
    lower(hex(d.trace_id)) AS trace_id,
    lower(hex(d.parent_span)) AS parent_span,
    d.ref AS ref,
    d.enforcer AS enforcer,
    d.partition AS partition
FROM {database}.records AS d
LEFT ANY JOIN
(
    SELECT
        boot,
        call_seq,
        countIf(r.kind != 2) AS ends,
        argMaxIf((r.outcome, r.recorded, r.status, r.error), r.seq, r.kind != 2) AS last,
        last.1 AS outcome,
        last.2 AS ended,
        last.3 AS status,
        last.4 AS error,
        max(r.verdict != 255) AS speaks,
        argMaxIf((r.verdict, toString(r.reason)), r.seq, r.verdict != 255) AS word,
        word.1 AS verdict,
        word.2 AS reason,
        max(toString(r.address)) AS address,
        max(r.bytes_out) AS bytes_out,
        max(r.bytes_in) AS bytes_in,
        max(r.duration_us) AS duration_us
    FROM {database}.records AS r
    WHERE boot != 0 AND kind IN (2, 3, 4)
    GROUP BY boot, call_seq
) AS e ON e.boot = d.boot AND e.call_seq = d.call_seq
WHERE d.boot != 0 AND d.kind = 1;
