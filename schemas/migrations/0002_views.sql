-- What people ask. A view that must change gets a new migration with CREATE OR REPLACE VIEW.
-- Numbers: kind 0 frame, 1 decision, 2 progress, 3 effect, 4 lost, 5 count. verdict 0 deny, 1 allow, 255 says nothing.
-- outcome 0 open, 1 ok, 2 error, 3 refused, 4 lost. Lists in one text are joined by char 31.

-- One row per call: what the decision says, and the last word of what followed.
CREATE OR REPLACE VIEW {database}.calls AS
SELECT
    lower(concat(leftPad(hex(boot), 16, '0'), leftPad(hex(seq), 16, '0'))) AS call_id,
    boot,
    seq,
    time,
    recorded,
    if(last.1 = 0, NULL, last.2) AS ended,
    door,
    tenant,
    session,
    agent,
    root,
    chain_text = '' ? [] : splitByChar('\x1F', chain_text) AS chain,
    depth,
    assurance,
    credential,
    proof,
    action,
    resource,
    scheme,
    host,
    domain,
    address,
    path,
    if(verdict_number = 1, 'allow', 'deny') AS verdict,
    ['enforce', 'shadow', 'best_effort'][mode_number + 1] AS mode,
    policies_text = '' ? [] : splitByChar('\x1F', policies_text) AS policies,
    reason,
    policy_digest,
    epoch,
    multiIf(last.1 > 0, ['ok', 'error', 'refused', 'lost'][last.1], verdict_number = 0, 'refused', '') AS outcome,
    last.3 AS status,
    last.4 AS error,
    bytes_out,
    bytes_in,
    last.5 / 1000 AS duration_ms,
    query_hash,
    query_bytes,
    query_bits,
    lower(hex(trace)) AS trace_id,
    lower(hex(span)) AS parent_span,
    ref,
    enforcer,
    partition
FROM
(
    SELECT
        boot,
        call_seq AS seq,
        anyIf(r.time, kind = 1) AS time,
        anyIf(r.recorded, kind = 1) AS recorded,
        anyIf(r.door, kind = 1) AS door,
        anyIf(r.tenant, kind = 1) AS tenant,
        anyIf(r.session, kind = 1) AS session,
        anyIf(r.agent, kind = 1) AS agent,
        anyIf(r.root, kind = 1) AS root,
        anyIf(r.chain, kind = 1) AS chain_text,
        anyIf(r.depth, kind = 1) AS depth,
        anyIf(r.assurance, kind = 1) AS assurance,
        anyIf(r.credential, kind = 1) AS credential,
        anyIf(r.proof, kind = 1) AS proof,
        anyIf(r.action, kind = 1) AS action,
        anyIf(r.resource, kind = 1) AS resource,
        anyIf(r.scheme, kind = 1) AS scheme,
        anyIf(r.host, kind = 1) AS host,
        anyIf(r.domain, kind = 1) AS domain,
        argMaxIf(r.address, r.seq, r.address != '') AS address,
        anyIf(r.path, kind = 1) AS path,
        argMaxIf(r.verdict, r.seq, r.verdict != 255) AS verdict_number,
        anyIf(r.mode, kind = 1) AS mode_number,
        anyIf(r.policies, kind = 1) AS policies_text,
        argMaxIf(r.reason, r.seq, r.verdict != 255 AND r.reason != '') AS reason,
        anyIf(r.policy_digest, kind = 1) AS policy_digest,
        anyIf(r.epoch, kind = 1) AS epoch,
        argMaxIf((toUInt8(r.outcome), r.recorded, r.status, r.error, r.duration_us), r.seq, r.outcome != 0) AS last,
        max(r.bytes_out) AS bytes_out,
        max(r.bytes_in) AS bytes_in,
        anyIf(r.query_hash, kind = 1) AS query_hash,
        anyIf(r.query_bytes, kind = 1) AS query_bytes,
        anyIf(r.query_bits, kind = 1) AS query_bits,
        anyIf(r.trace_id, kind = 1) AS trace,
        anyIf(r.parent_span, kind = 1) AS span,
        anyIf(r.ref, kind = 1) AS ref,
        anyIf(r.enforcer, kind = 1) AS enforcer,
        anyIf(r.partition, kind = 1) AS partition
    FROM {database}.records AS r
    WHERE boot != 0 AND kind IN (1, 3, 4)
    GROUP BY boot, call_seq
    HAVING max(kind = 1)
);

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
    SELECT 'destination', if(host != '', toString(host), substring(toString(resource), 8, length(resource) - 8)),
        min(time), max(time), count(), countIf(verdict = 1), countIf(verdict = 0)
    FROM {database}.records AS r
    WHERE r.kind = 1 AND (host != '' OR startsWith(resource, 'Host::"'))
    GROUP BY host, if(host != '', '', resource) AS resource
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
    before + 1 AS first, seq - 1 AS last, seq - 1 - before AS missing, at AS seen
FROM
(
    SELECT boot, seq, ingested AS at, lagInFrame(seq, 1, toUInt64(0)) OVER (PARTITION BY boot ORDER BY seq) AS before
    FROM {database}.records
    WHERE boot IN (SELECT boot FROM have WHERE many != top)
)
WHERE seq > before + 1
UNION ALL
SELECT 'record', '', lower(leftPad(hex(cut.boot), 16, '0')), toUInt32(0),
    have.top + 1, cut.top, cut.top - have.top, cut.seen
FROM cut
LEFT JOIN have ON have.boot = cut.boot
WHERE cut.top > have.top
UNION ALL
SELECT 'frame', toString(enforcer), lower(leftPad(hex(host_boot), 16, '0')), partition,
    before + 1, frame_no - 1, frame_no - 1 - before, at
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
