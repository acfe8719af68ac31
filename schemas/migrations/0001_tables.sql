-- The tables. Every statement may run again, also at the same time as another process's.
-- `{database}` is put in by schemas/store.py. Codecs are measured: see docs/store.md.

CREATE TABLE IF NOT EXISTS {database}.records
(
    kind UInt8 CODEC(ZSTD(1)),
    boot UInt64 CODEC(ZSTD(1)),
    seq UInt64 CODEC(Delta(8), ZSTD(1)),
    call_seq UInt64 CODEC(Delta(8), ZSTD(1)),
    time DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    recorded DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    verdict UInt8 CODEC(ZSTD(1)),
    outcome UInt8 CODEC(ZSTD(1)),
    mode UInt8 CODEC(ZSTD(1)),
    depth UInt8 CODEC(ZSTD(1)),
    status Int32 CODEC(ZSTD(1)),
    count UInt32 CODEC(ZSTD(1)),
    bytes_out UInt64 CODEC(ZSTD(1)),
    bytes_in UInt64 CODEC(ZSTD(1)),
    duration_us UInt64 CODEC(ZSTD(1)),
    epoch UInt64 CODEC(ZSTD(1)),
    ref UInt64 CODEC(Delta(8), ZSTD(1)),
    query_hash UInt64 CODEC(ZSTD(1)),
    query_bytes UInt32 CODEC(ZSTD(1)),
    query_bits UInt32 CODEC(ZSTD(1)),
    trace_id FixedString(16) CODEC(ZSTD(1)),
    parent_span FixedString(8) CODEC(ZSTD(1)),
    tenant LowCardinality(String) CODEC(ZSTD(1)),
    door LowCardinality(String) CODEC(ZSTD(1)),
    session String CODEC(ZSTD(1)),
    agent LowCardinality(String) CODEC(ZSTD(1)),
    root LowCardinality(String) CODEC(ZSTD(1)),
    chain LowCardinality(String) CODEC(ZSTD(1)),
    assurance LowCardinality(String) CODEC(ZSTD(1)),
    credential LowCardinality(String) CODEC(ZSTD(1)),
    proof LowCardinality(String) CODEC(ZSTD(1)),
    action LowCardinality(String) CODEC(ZSTD(1)),
    resource LowCardinality(String) CODEC(ZSTD(1)),
    scheme LowCardinality(String) CODEC(ZSTD(1)),
    host LowCardinality(String) CODEC(ZSTD(1)),
    domain LowCardinality(String) CODEC(ZSTD(1)),
    address LowCardinality(String) CODEC(ZSTD(1)),
    path String CODEC(ZSTD(1)),
    policies LowCardinality(String) CODEC(ZSTD(1)),
    reason LowCardinality(String) CODEC(ZSTD(1)),
    policy_digest LowCardinality(String) CODEC(ZSTD(1)),
    error String CODEC(ZSTD(1)),
    enforcer LowCardinality(String) CODEC(ZSTD(1)),
    enforcer_boot UInt64 CODEC(ZSTD(1)),
    partition UInt32 CODEC(ZSTD(1)),
    frame_no UInt64 CODEC(ZSTD(1)),
    ingested DateTime('UTC') CODEC(Delta(4), ZSTD(1)),
    frame_digest FixedString(32) CODEC(ZSTD(1)),
    frame_previous FixedString(32) CODEC(ZSTD(1)),
    frame_records UInt32 CODEC(ZSTD(1)),
    frame_bytes UInt32 CODEC(ZSTD(1)),
    frame_created DateTime64(6, 'UTC') CODEC(ZSTD(1)),
    frame_ranges Array(UInt64) CODEC(ZSTD(1)),
    frame_flag LowCardinality(String) CODEC(ZSTD(1)),
    frame_offset UInt64 CODEC(ZSTD(1)),
    frame_head String CODEC(ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toYYYYMMDD(ingested)
ORDER BY (boot, call_seq, seq)
SETTINGS non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS {database}.fence
(
    partition UInt32,
    epoch UInt64,
    owner String,
    taken DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = MergeTree
ORDER BY (partition, epoch);

CREATE TABLE IF NOT EXISTS {database}.deadletters
(
    received DateTime64(6, 'UTC'),
    partition UInt32,
    offset UInt64,
    enforcer String,
    enforcer_boot UInt64,
    frame_no UInt64,
    reason LowCardinality(String),
    message String,
    digest FixedString(32),
    data String CODEC(ZSTD(1)),
    state LowCardinality(String),
    changed DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = ReplacingMergeTree(changed)
ORDER BY digest;

CREATE TABLE IF NOT EXISTS {database}.frontiers
(
    partition UInt32,
    enforcer String,
    enforcer_boot UInt64,
    frame_no SimpleAggregateFunction(max, UInt64),
    stored SimpleAggregateFunction(max, DateTime64(6, 'UTC')),
    worker SimpleAggregateFunction(anyLast, String)
)
ENGINE = AggregatingMergeTree
ORDER BY (partition, enforcer, enforcer_boot);
