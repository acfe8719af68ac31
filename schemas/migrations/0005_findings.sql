-- What is noticed: traces across enforcers, findings of detectors, what rules did about them. A row with a higher version takes the
-- place of an older one; the views show the latest.

CREATE TABLE IF NOT EXISTS {database}.traces_stored
(
    trace_id FixedString(16),
    version UInt64,
    grade LowCardinality(String),
    root LowCardinality(String),
    agents Array(String),
    enforcers Array(String),
    calls UInt32,
    denied UInt32,
    depth UInt8,
    started DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    ended DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    why String CODEC(ZSTD(1)),
    tenant LowCardinality(String),
    stored DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = ReplacingMergeTree(version)
ORDER BY trace_id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS {database}.edges_stored
(
    trace_id FixedString(16),
    boot UInt64,
    seq UInt64,
    version UInt64,
    parent_boot UInt64,
    parent_seq UInt64,
    assurance LowCardinality(String),
    chain Array(String),
    grade LowCardinality(String),
    tenant LowCardinality(String)
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (trace_id, boot, seq)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS {database}.findings_stored
(
    id String,
    version UInt64,
    detector LowCardinality(String),
    subject String,
    agent LowCardinality(String),
    domain String,
    host String,
    credential String,
    session String,
    enforcer LowCardinality(String),
    window DateTime64(6, 'UTC'),
    started DateTime64(6, 'UTC'),
    ended DateTime64(6, 'UTC'),
    time DateTime64(6, 'UTC'),
    score Float64,
    severity LowCardinality(String),
    title String,
    terms String CODEC(ZSTD(1)),
    evidence String CODEC(ZSTD(1)),
    calls Array(String),
    calls_count UInt64,
    sql String CODEC(ZSTD(1)),
    withdrawn UInt8,
    tenant LowCardinality(String),
    worker LowCardinality(String),
    stored DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = ReplacingMergeTree(version)
ORDER BY id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS {database}.responses_stored
(
    finding String,
    rule String,
    selector String,
    state LowCardinality(String),
    epoch UInt64,
    for_s UInt64,
    time DateTime64(6, 'UTC'),
    why String,
    tenant LowCardinality(String),
    worker LowCardinality(String),
    stored DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = ReplacingMergeTree(time)
ORDER BY (finding, rule, selector, epoch)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- As before, and `client`: a decision's own address is where the caller's connection came from, its end's the one that was dialled.
CREATE OR REPLACE VIEW {database}.calls AS
SELECT
    lower(concat(leftPad(hex(d.boot), 16, '0'), leftPad(hex(d.call_seq), 16, '0'))) AS call_id,
    d.boot AS boot,
    d.call_seq AS seq,
    d.time AS time,
    d.recorded AS recorded,
    if(ifNull(e.ends, 0) = 0, NULL, e.ended) AS ended,
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
    ifNull(e.address, '') AS address,
    toString(d.address) AS client,
    d.path AS path,
    if(if(ifNull(e.speaks, 0), ifNull(e.verdict, 0), d.verdict) = 1, 'allow', 'deny') AS verdict,
    ['enforce', 'shadow', 'best_effort'][d.mode + 1] AS mode,
    if(d.policies = '', [], splitByChar('\x1F', toString(d.policies))) AS policies,
    if(ifNull(e.reason, '') != '', ifNull(e.reason, ''), toString(d.reason)) AS reason,
    d.policy_digest AS policy_digest,
    d.epoch AS epoch,
    if(verdict = 'deny' AND ifNull(e.ends, 0) = 0, 'refused', ['', 'ok', 'error', 'refused', 'lost'][ifNull(e.outcome, 0) + 1]) AS outcome,
    ifNull(e.status, 0) AS status,
    ifNull(e.error, '') AS error,
    greatest(d.bytes_out, ifNull(e.bytes_out, 0)) AS bytes_out,
    greatest(d.bytes_in, ifNull(e.bytes_in, 0)) AS bytes_in,
    ifNull(e.duration_us, 0) / 1000 AS duration_ms,
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

-- Traces of two calls or more, and those that are not complete; a call of a trace that is not here is a complete trace of its own.
CREATE OR REPLACE VIEW {database}.traces AS
SELECT lower(hex(t.trace_id)) AS trace_id, t.version AS version, t.grade AS grade, t.root AS root, t.agents AS agents,
    t.enforcers AS enforcers, t.calls AS calls, t.denied AS denied, t.depth AS depth, t.started AS started, t.ended AS ended,
    t.why AS why, t.tenant AS tenant, t.stored AS stored
FROM {database}.traces_stored AS t FINAL;

-- Which call of a trace caused which. `parent` is empty where nobody did, or it is not known.
CREATE OR REPLACE VIEW {database}.edges AS
SELECT lower(hex(e.trace_id)) AS trace_id,
    lower(concat(leftPad(hex(e.boot), 16, '0'), leftPad(hex(e.seq), 16, '0'))) AS call_id,
    if(e.parent_seq = 0, '', lower(concat(leftPad(hex(e.parent_boot), 16, '0'), leftPad(hex(e.parent_seq), 16, '0')))) AS parent,
    e.assurance AS assurance, e.chain AS chain, e.grade AS grade, e.version AS version, e.tenant AS tenant
FROM {database}.edges_stored AS e FINAL;

-- What detectors saw: the last word on each finding. `state` is `open`; `false` where somebody has said so of its detector and subject and
-- that still holds; `withdrawn` where an older call that came in late has changed what was seen.
CREATE OR REPLACE VIEW {database}.findings AS
WITH
    excepted AS
    (
        SELECT JSONExtractString(last, 'detector') AS detector, JSONExtractString(last, 'subject') AS subject
        FROM
        (
            SELECT argMax(value, epoch) AS last
            FROM {database}.control
            WHERE kind = 'exception' AND journal = (SELECT max(journal) FROM {database}.control)
            GROUP BY name
        )
        WHERE last != ''
    )
SELECT f.id AS id, f.version AS version, f.detector AS detector, f.subject AS subject, f.agent AS agent, f.domain AS domain,
    f.host AS host, f.credential AS credential, f.session AS session, f.enforcer AS enforcer, f.window AS window, f.started AS started,
    f.ended AS ended, f.time AS time, f.score AS score, f.severity AS severity, f.title AS title,
    multiIf(f.withdrawn != 0, 'withdrawn', (toString(f.detector), f.subject) IN excepted, 'false', 'open') AS state,
    f.terms AS terms, f.evidence AS evidence, f.calls AS calls, f.calls_count AS calls_count, f.sql AS sql, f.tenant AS tenant,
    f.worker AS worker, f.stored AS stored
FROM {database}.findings_stored AS f FINAL;

-- What rules did about findings: `revoked` (in force as `epoch`), `standing` (was revoked already, as `epoch`), `limited` (the rule
-- had revoked as often as it may), `excepted`, `late` (nothing had been seen for longer than the rule revokes), `failed`.
CREATE OR REPLACE VIEW {database}.responses AS
SELECT r.finding AS finding, r.rule AS rule, r.selector AS selector, r.state AS state, r.epoch AS epoch, r.for_s AS for_s,
    r.time AS time, r.why AS why, r.tenant AS tenant, r.worker AS worker
FROM {database}.responses_stored AS r FINAL;
