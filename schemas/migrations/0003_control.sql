-- What control has said, and who has applied it when. `journal` counts journals: a new one begins at epoch 1 again.

CREATE TABLE IF NOT EXISTS {database}.control
(
    journal UInt32,
    epoch UInt64 CODEC(Delta(8), ZSTD(1)),
    key String CODEC(ZSTD(1)),
    kind LowCardinality(String),
    name String CODEC(ZSTD(1)),
    value String CODEC(ZSTD(1)),
    time DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    actor LowCardinality(String),
    tenant LowCardinality(String),
    stored DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = ReplacingMergeTree(stored)
ORDER BY (journal, epoch, key)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS {database}.acknowledged
(
    journal UInt32,
    host LowCardinality(String),
    host_boot String,
    door String,
    epoch UInt64,
    policy_digest LowCardinality(String),
    applied DateTime64(6, 'UTC'),
    state LowCardinality(String),
    doors UInt16,
    tenant LowCardinality(String),
    said SimpleAggregateFunction(min, DateTime64(6, 'UTC'))
)
ENGINE = AggregatingMergeTree
ORDER BY (journal, host, host_boot, door, epoch, policy_digest, applied, state, doors, tenant)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- One row for each time that something was revoked. `until` is NULL while the row is live. `lifted_by` is empty where nobody
-- saw who: the store was not told in time, and `until` is then when it was seen to be gone.
CREATE OR REPLACE VIEW {database}.revocations AS
WITH
    JSONExtractInt(e.value, 'expires') AS ends,
    JSONExtractInt(e.value, 'not_before') AS starts
SELECT
    e.name AS selector,
    JSONExtractString(e.value, 'kind') AS kind,
    JSONExtractString(e.value, 'name') AS name,
    JSONExtractBool(e.value, 'cascade') AS cascade,
    multiIf(e.next_epoch = 0, 'live', e.next_value != '', 'replaced',
        e.next_actor = 'control' OR (e.next_actor = '' AND ends BETWEEN 1 AND toUnixTimestamp(e.next_time)), 'expired', 'lifted') AS state,
    JSONExtractString(e.value, 'reason') AS reason,
    e.actor AS by,
    e.time AS since,
    if(e.next_epoch = 0, NULL, e.next_time) AS until,
    e.next_actor AS lifted_by,
    if(ends = 0, NULL, toDateTime(ends, 'UTC')) AS expires,
    if(starts = 0, NULL, toDateTime(starts, 'UTC')) AS not_before,
    e.epoch AS epoch,
    e.tenant AS tenant
FROM
(
    SELECT name, value, actor, time, epoch, tenant,
        leadInFrame(epoch, 1, toUInt64(0)) OVER w AS next_epoch,
        leadInFrame(value, 1, '') OVER w AS next_value,
        leadInFrame(toString(actor), 1, '') OVER w AS next_actor,
        leadInFrame(time, 1, toDateTime64(0, 6, 'UTC')) OVER w AS next_time
    FROM {database}.control FINAL
    WHERE kind = 'revocation' AND journal = (SELECT max(journal) FROM {database}.control)
    WINDOW w AS (PARTITION BY key ORDER BY epoch ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
) AS e
WHERE e.value != '';

-- Who has acknowledged what, and when: one row for each thing that a host or one of its doors said of itself. `door` is empty for
-- the host's own word, `doors` is how many it had then. `last` marks its latest word in the
-- latest start of its host; a door that has left says `gone`.
CREATE OR REPLACE VIEW {database}.acks AS
SELECT
    host,
    host_boot,
    door,
    state,
    epoch,
    policy_digest,
    applied,
    heard AS said,
    doors,
    (row_number() OVER (PARTITION BY host, door ORDER BY heard DESC, epoch DESC, applied DESC)) = 1
        AND host_boot = argMax(host_boot, heard) OVER (PARTITION BY host) AS last,
    tenant
FROM
(
    SELECT host, host_boot, door, epoch, policy_digest, applied, state, doors, tenant, CAST(min(said), 'DateTime64(6, \'UTC\')') AS heard
    FROM {database}.acknowledged
    WHERE journal = (SELECT max(journal) FROM {database}.control)
    GROUP BY ALL
);

-- Each entry of the log, and how long the slowest of those that lived then took to apply it. A host stands for itself while it has
-- no door; who has applied nothing yet has just started. `waiting` counts those that live and have not said so yet. Of a policy,
-- applied is when it was decided by.
CREATE OR REPLACE VIEW {database}.epochs AS
WITH
    step AS
    (
        SELECT host, host_boot, door, epoch, policy_digest, applied,
            lagInFrame(epoch, 1, toUInt64(0)) OVER w AS before,
            row_number() OVER w AS number
        FROM {database}.acks
        WHERE epoch > 0 AND state IN ('ready', 'stale') AND (door != '' OR doors = 0)
        WINDOW w AS (PARTITION BY host, host_boot, door ORDER BY epoch, applied, said ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
    ),
    entry AS
    (
        SELECT epoch, key, kind, time, actor, tenant, if(kind = 'policy', JSONExtractString(value, 'digest'), '') AS digest
        FROM {database}.control FINAL
        WHERE journal = (SELECT max(journal) FROM {database}.control) AND (value != '' OR actor != '')
    ),
    took AS
    (
        SELECT entry.epoch AS epoch, s.host AS host, s.door AS door, dateDiff('microsecond', entry.time, s.applied) / 1000 AS ms
        FROM (SELECT host, door, applied, arrayJoin(range(before + 1, epoch + 1)) AS reached FROM step WHERE number > 1) AS s
        INNER JOIN entry ON entry.epoch = s.reached
        WHERE entry.digest = ''
        UNION ALL
        SELECT entry.epoch, s.host, s.door, dateDiff('microsecond', any(entry.time), min(s.applied)) / 1000
        FROM (SELECT host, host_boot, door, epoch AS reached, policy_digest, applied, number FROM step) AS s
        INNER JOIN entry ON entry.digest = s.policy_digest
        WHERE s.reached >= entry.epoch AND entry.digest != ''
        GROUP BY entry.epoch, s.host, s.host_boot, s.door
        HAVING argMin(s.number, s.applied) > 1
    ),
    slowest AS
    (
        SELECT epoch, count() AS applied, max((ms, toString(host), door)) AS worst, worst.1 AS longest, worst.2 AS slow, worst.3 AS part
        FROM took
        GROUP BY epoch
    ),
    living AS
    (
        SELECT groupArray(epoch) AS reached
        FROM {database}.acks
        WHERE last AND state IN ('ready', 'stale') AND (door != '' OR doors = 0)
    )
SELECT
    entry.epoch AS epoch,
    entry.key AS key,
    entry.kind AS kind,
    entry.time AS time,
    entry.actor AS actor,
    ifNull(slowest.applied, 0) AS applied,
    arrayCount(reached -> reached < entry.epoch, (SELECT reached FROM living)) AS waiting,
    ifNull(slowest.slow, '') AS host,
    ifNull(slowest.part, '') AS door,
    if(ifNull(slowest.applied, 0) = 0, NULL, slowest.longest) AS slowest_ms,
    entry.tenant AS tenant
FROM entry
LEFT JOIN slowest ON slowest.epoch = entry.epoch;
