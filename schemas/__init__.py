"""The nouns, in the order that a call meets them.

`limits` bounds everything; `errors` says who must act; `home` names the files and `process` opens them the same way in every
process; `telemetry` is how each is watched; `calls` is a line of a recorded-calls file and `callfields` what its fields may be;
`vocabulary` says which entities contain which by their names alone; `bundle` is the policy that decides it, `canonical` its one
spelling; `records` is what a door writes and `layout` the bytes of it; `frame` carries records to the pipeline on `topics`;
`store` has the tables and views, `migrate` makes them; `frontier` tells the host what it may forget; `control` is an entry of
the log that goes the other way, `follower` what its reader may believe, `selectors` what a revocation names, `chunks` how a
bundle travels and `ack` who has applied what; `agents` are those that a host hands to its doors; `config` is the configuration
file, `siem` the sinks in it, `links` reaches Kafka and ClickHouse as it says; `keys` are the signing keys. What is noticed of
the calls: `egress` are sums of them by who may be judged, `detectors` who says what, `findings` what they say, and `past` what
a worker reads of it all when it starts.
"""
