"""The processes of the pipeline, where cores meet Kafka, ClickHouse and the clock.

`broker` and `topics` carry frames (embedded, or on a real Kafka), `worker` reads them and writes to the `store`, which is chDB
behind ClickHouse's HTTP protocol when no server is configured. `control` publishes what operators and policy files decide, and
hears who has applied it; commands and workers ask it through `controlclient`. `siem` feeds
the sinks of security events from the store.
"""
