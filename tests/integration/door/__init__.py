"""One egress door between raw clients and raw origins, over a board that the test writes: no broker, no host, no control."""
