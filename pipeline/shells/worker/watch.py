"""Puts together what looks at the calls: tap, lookout, rules; nothing of it where `[detect] on` is false.

Tap, lookout, findings, risks and rules have a connection to the store and a thread each, so that none waits for the other.
"""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipeline.shells.controlclient import Control
from pipeline.shells.worker import metrics
from pipeline.shells.worker.answered import Answered
from pipeline.shells.worker.carrier import Carrier, Flow
from pipeline.shells.worker.cases import Cases, CaseStore
from pipeline.shells.worker.desk import Desk
from pipeline.shells.worker.herald import Herald
from pipeline.shells.worker.lookout import Lookout
from pipeline.shells.worker.past import Past
from pipeline.shells.worker.registry import Registry
from pipeline.shells.worker.responder import ANSWER_S, Responder
from pipeline.shells.worker.tap import Tap
from schemas.config import Config
from schemas.home import Home


class Watch:
    """Everything of one worker that looks at calls."""

    def __init__(
        self, home: Home, config: Config, *, slot: str, servers: str, key: Ed25519PrivateKey, herald: Herald, registry: Registry
    ) -> None:
        registry.know_self(key.public_key().verify)
        flow = Flow(config)
        books = {name: Past(home, config, slot=slot) for name in ("tap", "pen", "lookout", "words", "risks")}
        self.responder = Responder(
            config.respond, slot=slot, control=Control(home, config, answer_s=ANSWER_S), keys=registry,
            store=Answered(home, config, slot=slot),
        )  # fmt: skip
        self._carrier = Carrier(config, servers=servers, slot=slot, flow=flow)

        def tap_cases(stored: Callable[..., Awaitable[Any]]) -> Cases:
            return Cases(books["tap"], stored=stored, wake=herald.wake_finding, slot=slot)

        def cases(words: Desk[CaseStore], risks: Desk[CaseStore]) -> Cases:
            return Cases(words.store, stored=words.persist, fusing=(risks.store, risks.persist), wake=herald.wake_finding,
                         slot=slot, responder=self.responder, excepted=registry.excepted)  # fmt: skip

        self.tap = Tap(
            config, store=books["tap"], pen=books["pen"], cases=tap_cases, carrier=self._carrier, sign=key.sign, slot=slot
        )
        self.lookout = Lookout(
            config, slot=slot, servers=servers, keys=registry, store=books["lookout"], words=books["words"],
            risks=books["risks"], cases=cases, flow=flow, carrier=self._carrier, sign=key.sign,
        )  # fmt: skip

    def jobs(self) -> tuple[Coroutine[Any, Any, None], ...]:
        """What runs for as long as the worker does."""
        return self.tap.clock(), self.lookout.run(), self.responder.run()

    async def stop(self) -> None:
        """Let the producer go."""
        await self._carrier.stop()

    @property
    def waits_for(self) -> str:
        """Why what is noticed is not in the store yet; empty when it is."""
        return self.lookout.waits_for or self.responder.waits_for

    def say(self) -> dict[str, Any]:
        """As the run file has it."""
        said = self.lookout.say()
        metrics.LOOKOUT_LAG.set(said["lag"])
        return said
