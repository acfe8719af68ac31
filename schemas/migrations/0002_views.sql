-- What people ask. A view that must change gets a new migration with CREATE OR REPLACE VIEW.
-- Numbers: kind 0 frame, 1 decision, 2 progress, 3 effect, 4 lost, 5 count. verdict 0 deny, 1 allow, 255 says nothing.
-- outcome 0 open, 1 ok, 2 error, 3 refused, 4 lost. Lists in one text are joined by char 31.

-- One row per call: what its decision says, and the last word of what followed. A filter on what the decision says is applied
-- before the join; look a call up by (boot, seq), which is the table's key, where speed matters. `ifNull` is for clients that set
-- join_use_nulls.
CREATE OR REPLACE VIEW {database}.calls AS
SELECT
    lower(concat(leftPad(hex(d.boot), 16, '0'), leftPad(hex(d.seq), 16, '0'))) AS call_id,
    d.boot AS boot,
    d.seq AS seq,
    d.time AS time,
    d.recorded AS recorded,
    if(ifNull(e.records, 0) = 0, NULL, e.ended) AS ended,
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
    if(ifNull(e.address, '') != '', ifNull(e.address, ''), toString(d.address)) AS address,
    d.path AS path,
    if(if(ifNull(e.speaks, 0), ifNull(e.verdict, 0), d.verdict) = 1, 'allow', 'deny') AS verdict,
    ['enforce', 'shadow', 'best_effort'][d.mode + 1] AS mode,
    if(d.policies = '', [], splitByChar('\x1F', toString(d.policies))) AS policies,
    if(ifNull(e.reason, '') != '', ifNull(e.reason, ''), toString(d.reason)) AS reason,
    d.policy_digest AS policy_digest,
    d.epoch AS epoch,
    if(verdict = 'deny' AND ifNull(e.records, 0) = 0, 'refused', ['', 'ok', 'error', 'refused', 'lost'][ifNull(e.outcome, 0) + 1]) AS outcome,
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
        count() AS records,
        argMax((r.outcome, r.recorded, r.status, r.error, r.duration_us), r.seq) AS last,
        last.1 AS outcome,
        last.2 AS ended,
        last.3 AS status,
        last.4 AS error,
        last.5 AS duration_us,
        max(r.verdict != 255) AS speaks,
        argMaxIf((r.verdict, toString(r.reason)), r.seq, r.verdict != 255) AS word,
        word.1 AS verdict,
        word.2 AS reason,
        max(toString(r.address)) AS address,
        max(r.bytes_out) AS bytes_out,
        max(r.bytes_in) AS bytes_in
    FROM {database}.records AS r
    WHERE boot != 0 AND kind IN (3, 4)
    GROUP BY boot, call_seq
) AS e ON e.boot = d.boot AND e.call_seq = d.seq
WHERE d.boot != 0 AND d.kind = 1;

-- Who and what has been seen: agents, tools, destinations, principals (every link of a chain).
CREATE OR REPLACE VIEW {database}.inventory AS
SELECT
    kind,
    name,
    min(first_seen) AS first_seen,
    max(last_seen) AS last_seen,
    sum(calls) AS calls,
    sum(allowed) AS allowed,
    sum(denied) AS denied
FROM
(
    SELECT 'agent' AS kind, toString(agent) AS name, min(time) AS first_seen, max(time) AS last_seen,
        count() AS calls, countIf(verdict = 1) AS allowed, countIf(verdict = 0) AS denied
    FROM {database}.records AS r
    WHERE r.kind = 1 AND agent != ''
    GROUP BY agent
    UNION ALL
    SELECT 'tool', replaceAll(replaceAll(substring(toString(resource), 8, length(resource) - 8), '\\"', '"'), '\\\\', '\\'),
        min(time), max(time), count(), countIf(verdict = 1), countIf(verdict = 0)
    FROM {database}.records AS r
    WHERE r.kind = 1 AND startsWith(resource, 'Tool::"')
    GROUP BY resource
    UNION ALL
    SELECT 'destination', if(startsWith(resource, 'Host::"'), substring(toString(resource), 8, length(resource) - 8), toString(host)),
        min(time), max(time), count(), countIf(verdict = 1), countIf(verdict = 0)
    FROM {database}.records AS r
    WHERE r.kind = 1 AND (host != '' OR startsWith(resource, 'Host::"'))
    GROUP BY resource, host
    UNION ALL
    SELECT 'principal', arrayJoin(splitByChar('\x1F', toString(chain))),
        min(first), max(last), sum(n), sum(yes), sum(no)
    FROM
    (
        SELECT chain, min(time) AS first, max(time) AS last, count() AS n, countIf(verdict = 1) AS yes, countIf(verdict = 0) AS no
        FROM {database}.records AS r
        WHERE r.kind = 1 AND chain != ''
        GROUP BY chain
    )
    GROUP BY chain
)
GROUP BY kind, name;

-- One row per frame that was stored or dead-lettered.
CREATE OR REPLACE VIEW {database}.frames AS
SELECT
    enforcer,
    lower(leftPad(hex(call_seq), 16, '0')) AS enforcer_boot,
    partition,
    frame_no,
    frame_records AS records,
    frame_bytes AS bytes,
    frame_created AS created,
    ingested,
    frame_flag AS flag,
    lower(hex(frame_digest)) AS digest,
    lower(hex(frame_previous)) AS previous,
    frame_offset AS offset,
    arrayMap(i -> (lower(leftPad(hex(frame_ranges[3 * i - 2]), 16, '0')), frame_ranges[3 * i - 1], frame_ranges[3 * i]),
        range(1, toUInt32(intDiv(length(frame_ranges), 3) + 1))) AS ranges,
    frame_head AS head
FROM {database}.records
WHERE boot = 0 AND kind = 0;

-- What is missing. `what` = record: seqs first to last of door boot `boot` (their last ones are known from the ranges that frames
-- were cut from); frame: frame numbers first to last of a lane; chain: frame `first` names another predecessor than the one stored.
-- `seen` is when the evidence came in: what is younger than the pipeline's lag may still be on its way.
CREATE OR REPLACE VIEW {database}.gaps AS
WITH
    cut AS
    (
        SELECT frame_ranges[3 * i - 2] AS boot, max(frame_ranges[3 * i]) AS top, max(at) AS seen
        FROM
        (
            SELECT frame_ranges, ingested AS at, arrayJoin(range(1, toUInt32(intDiv(length(frame_ranges), 3) + 1))) AS i
            FROM {database}.records
            WHERE boot = 0 AND kind = 0
        )
        GROUP BY boot
    ),
    have AS
    (
        SELECT boot, groupBitmap(seq) AS many, max(seq) AS top
        FROM {database}.records
        WHERE boot != 0
        GROUP BY boot
    )
SELECT 'record' AS what, '' AS enforcer, lower(leftPad(hex(boot), 16, '0')) AS boot, toUInt32(0) AS partition,
    before + 1 AS first, toUInt64(seq - 1) AS last, toUInt64(seq - 1 - before) AS missing, at AS seen
FROM
(
    SELECT boot, seq, ingested AS at, lagInFrame(seq, 1, toUInt64(0)) OVER (PARTITION BY boot ORDER BY seq) AS before
    FROM {database}.records
    WHERE boot IN (SELECT boot FROM have WHERE many != top)
)
WHERE seq > before + 1
UNION ALL
SELECT 'record', '', lower(leftPad(hex(cut.boot), 16, '0')), toUInt32(0),
    ifNull(have.top, 0) + 1, cut.top, toUInt64(cut.top - ifNull(have.top, 0)), cut.seen
FROM cut
LEFT JOIN have ON have.boot = cut.boot
WHERE cut.top > ifNull(have.top, 0)
UNION ALL
SELECT 'frame', toString(enforcer), lower(leftPad(hex(host_boot), 16, '0')), partition,
    before + 1, toUInt64(frame_no - 1), toUInt64(frame_no - 1 - before), at
FROM
(
    SELECT enforcer, call_seq AS host_boot, partition, seq AS frame_no, ingested AS at,
        lagInFrame(seq, 1, toUInt64(0)) OVER (PARTITION BY enforcer, call_seq, partition ORDER BY seq) AS before
    FROM {database}.records
    WHERE boot = 0 AND kind = 0
)
WHERE frame_no > before + 1
UNION ALL
SELECT 'chain', toString(enforcer), lower(leftPad(hex(host_boot), 16, '0')), partition,
    frame_no, frame_no, toUInt64(0), at
FROM
(
    SELECT enforcer, call_seq AS host_boot, partition, seq AS frame_no, ingested AS at, frame_previous,
        lagInFrame(seq, 1, toUInt64(0)) OVER lane AS before,
        lagInFrame(frame_digest, 1, toFixedString('', 32)) OVER lane AS digest_before
    FROM {database}.records
    WHERE boot = 0 AND kind = 0
    WINDOW lane AS (PARTITION BY enforcer, call_seq, partition ORDER BY seq)
)
WHERE frame_no = before + 1 AND frame_previous != digest_before;
