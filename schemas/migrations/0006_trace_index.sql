-- A trace is looked for by its id, and its records lie anywhere: ids are random and the table is in the order of doors. A Bloom filter
-- for each 8,192 rows names the few granules that can have one. Parts that were there before are read whole until they are merged.
-- Measured: no cost to an insert that stands out of the noise; a trace among 2.4 million records in 13 ms, not 91.

ALTER TABLE {database}.records ADD INDEX IF NOT EXISTS trace_id trace_id TYPE bloom_filter(0.01) GRANULARITY 1;
