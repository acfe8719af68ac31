-- What the egress door adds: tunnels that tell how far they are, refusals of callers that nobody knows, and who proves himself how.

-- One row per call: what its decision says, and the last word of what followed. A call is open until an effect (3) or its loss (4)
-- is there; meanwhile its bytes, address and duration are those of its last progress (2). A decision's call_seq is its own seq, and stands in
-- the table's key: `boot IN (...) AND seq IN (...)` reads both sides of the join by that key.
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
    if(ifNull(e.address, '') != '', ifNull(e.address, ''), toString(d.address)) AS address,
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

-- Requests that no call came of: nobody was known (`identity`), or they had no one meaning (`malformed`). A door counts them, so that
-- a flood is some rows and none is missing. `agent` is who the caller said he was; of `identity`, nobody has proved it.
CREATE OR REPLACE VIEW {database}.refusals AS
SELECT
    time,
    recorded,
    door,
    tenant,
    agent,
    reason,
    error AS what,
    status,
    count,
    lower(leftPad(hex(boot), 16, '0')) AS boot,
    seq,
    enforcer
FROM {database}.records AS r
WHERE r.boot != 0 AND r.kind = 5;

-- Who and what has been seen: agents, tools, destinations, principals (every link of a chain), and shadow agents: names that somebody
-- claimed without a proof, and that control has no agent for. `failed` counts such claims; those of an agent's own name are the
-- agent's. `credentials` are the kinds of proof that an agent has shown, an empty text for calls with none. `allowed` are calls that
-- were let out and not taken back: an effect with a verdict of its own (DENY, for an address or a revocation) is the call's last word.
CREATE OR REPLACE VIEW {database}.inventory AS
WITH
    listed AS
    (
        SELECT name
        FROM (SELECT name, argMax(value, epoch) AS last FROM {database}.control
              WHERE kind = 'agent' AND journal = (SELECT max(journal) FROM {database}.control) GROUP BY name)
        WHERE last != ''
    ),
    taken_back AS
    (
        SELECT boot, call_seq FROM {database}.records WHERE kind = 3 AND verdict = 0
    )
SELECT
    kind,
    name,
    if(sum(s.calls) = 0, min(s.first_seen), minIf(s.first_seen, s.calls != 0)) AS first_seen,
    if(sum(s.calls) = 0, max(s.last_seen), maxIf(s.last_seen, s.calls != 0)) AS last_seen,
    sum(s.calls) AS calls,
    sum(s.allowed) AS allowed,
    sum(s.denied) AS denied,
    sum(s.failed) AS failed,
    arraySort(groupUniqArrayArray(s.credentials)) AS credentials
FROM
(
    SELECT 'agent' AS kind, toString(agent) AS name, min(time) AS first_seen, max(time) AS last_seen,
        count() AS calls, countIf(verdict = 1 AND (boot, call_seq) NOT IN taken_back) AS allowed,
        countIf(verdict = 0 OR (boot, call_seq) IN taken_back) AS denied, toUInt64(0) AS failed,
        groupUniqArray(toString(proof)) AS credentials
    FROM {database}.records AS r
    WHERE r.kind = 1 AND agent != ''
    GROUP BY agent
    UNION ALL
    SELECT if(agent IN (SELECT name FROM listed), 'agent', 'shadow'), toString(agent), min(time), max(time),
        toUInt64(0), toUInt64(0), toUInt64(0), sum(r.count), CAST([], 'Array(String)')
    FROM {database}.records AS r
    WHERE r.kind = 5 AND reason = 'identity' AND agent != ''
    GROUP BY agent
    UNION ALL
    SELECT 'tool', replaceAll(replaceAll(substring(toString(resource), 8, length(resource) - 8), '\\"', '"'), '\\\\', '\\'),
        min(time), max(time), count(), countIf(verdict = 1 AND (boot, call_seq) NOT IN taken_back),
        countIf(verdict = 0 OR (boot, call_seq) IN taken_back), toUInt64(0), CAST([], 'Array(String)')
    FROM {database}.records AS r
    WHERE r.kind = 1 AND startsWith(resource, 'Tool::"')
    GROUP BY resource
    UNION ALL
    SELECT 'destination', if(startsWith(resource, 'Host::"'), substring(toString(resource), 8, length(resource) - 8), toString(host)),
        min(time), max(time), count(), countIf(verdict = 1 AND (boot, call_seq) NOT IN taken_back),
        countIf(verdict = 0 OR (boot, call_seq) IN taken_back), toUInt64(0), CAST([], 'Array(String)')
    FROM {database}.records AS r
    WHERE r.kind = 1 AND (host != '' OR startsWith(resource, 'Host::"'))
    GROUP BY resource, host
    UNION ALL
    SELECT 'principal', arrayJoin(splitByChar('\x1F', toString(chain))),
        min(first), max(last), sum(n), sum(yes), sum(no), toUInt64(0), CAST([], 'Array(String)')
    FROM
    (
        SELECT chain, min(time) AS first, max(time) AS last, count() AS n,
            countIf(verdict = 1 AND (boot, call_seq) NOT IN taken_back) AS yes,
            countIf(verdict = 0 OR (boot, call_seq) IN taken_back) AS no
        FROM {database}.records AS r
        WHERE r.kind = 1 AND chain != ''
        GROUP BY chain
    )
    GROUP BY chain
) AS s
GROUP BY kind, name;
