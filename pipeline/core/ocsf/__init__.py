"""What a SIEM is told, as OCSF events (1.8.0, or 1.1.0 for those who read no later one), made of rows of the store.

`event` is what all have: the base of an event, who acts and for whom, and how an event is made small enough for a transport.
`finding` makes Detection Findings (2004) of findings and of what rules did about them; `revocation` makes Entity Management
events (3004) of what control revoked and lifted; `refusal` makes HTTP Activity (4002) or API Activity (6003) of a refused call.

An event of a row is the same event whenever it is made, with the same `metadata.uid`: that is what a consumer dedupes by.
"""

from pipeline.core.ocsf.event import Alert, Dialect, encode, fitted
from pipeline.core.ocsf.finding import finding_alert, response_alert, sample_alert
from pipeline.core.ocsf.refusal import refusal_alert
from pipeline.core.ocsf.revocation import revocation_alert

__all__ = [
    "Alert", "Dialect", "encode", "finding_alert", "fitted", "refusal_alert", "response_alert", "revocation_alert",
    "sample_alert",
]  # fmt: skip
