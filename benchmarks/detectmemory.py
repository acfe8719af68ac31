"""What the detectors keep of an agent: bytes for 1,000 agents, each with calls to a few hosts and tools over a day.

Rows are made here, as a tap would send them; memory is what the process has more of once it knows them.
"""

import gc
import resource
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.core.detect import detectors
from schemas.egress import SUBJECTS

AGENTS: Final = 4_000
CALLS: Final = 60
HOSTS: Final = 12
START_S: Final = 1_700_006_400


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def bytes_for_1000_agents() -> float:
    """What 1,000 agents add to a partition's detectors."""
    made = detectors()
    _take(made, 0, AGENTS // 4)  # what is made once, and pages that Python keeps
    gc.collect()
    before = resident()
    _take(made, AGENTS // 4, AGENTS)
    gc.collect()
    return (resident() - before) / (AGENTS - AGENTS // 4) * 1_000


def _take(made: Any, first: int, last: int) -> None:
    for begin in range(first, last, 250):
        tables = {subject: _rows(subject, begin, min(last, begin + 250)) for subject in SUBJECTS}
        for one in made:
            one.take(tables[one.subject])


def _rows(subject: str, first: int, last: int) -> pa.Table:
    schema, count = SUBJECTS[subject], (last - first) * CALLS
    number = np.arange(count)
    agent, call = first + number // CALLS, number % CALLS
    second = START_S + call * 1_200 + agent % 600
    columns: dict[str, Any] = {
        "agent": [f"agent-{one}" for one in agent], "credential": [f"secret-{one}" for one in agent],
        "domain": [f"d{one}.example" for one in call % HOSTS], "host": [f"www.d{one}.example" for one in call % HOSTS],
        "action": ["http:GET"] * count, "task": [f"s-{a}-{c // 6}" for a, c in zip(agent, call, strict=True)],
        "resource": [f'Tool::"server/tool-{one}"' for one in call % HOSTS], "proof": ["secret"] * count,
        "enforcer": ["enforce-1"] * count, "network": ["10.0.0.0/24"] * count, "second": second, "hour": second // 3600 * 3600,
        "time": second * 1_000_000, "first": second * 1_000_000, "last": second * 1_000_000, "calls": np.ones(count, np.int64),
        "bytes_out": np.full(count, 500), "bytes_in": np.full(count, 5_000), "call_seq": number + 1, "call_boot": agent + 1,
        "frame_no": number // 4_000 + 1,
    }  # fmt: skip
    arrays = []
    for field in schema:
        values = columns.get(field.name, np.zeros(count, np.int64))
        if pa.types.is_dictionary(field.type):
            arrays.append(pa.array(values if field.name in columns else ["lane"] * count, pa.utf8()).dictionary_encode())
        else:
            arrays.append(pa.array(values).cast(field.type))
    return pa.Table.from_arrays(arrays, schema=schema)
