"""The demo's story, told with real processes: work, a poisoned page, a secret in pieces, a stolen token; each part must happen.

    up          broker, store, control, worker and two enforcers with a door each, in a home of the demo's own
    before      two weeks of ordinary work are replayed, so that detectors know what is usual
    work        alice asks the assistant; the assistant asks the researcher, through one door and then the other: one chain
    poison      the researcher believes a page and sends a secret in pieces to a new domain: refused, detected, revoked
    theft       the assistant's token is used by somebody else: revoked at its first use there
    asked       the chain, the findings with their evidence, and who obeyed when, from ClickHouse
"""

import os
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pipeline.cli.asking import asking
from pipeline.cli.common import called_as, shown_size
from pipeline.cli.demo.cast import COMMAND, Company
from pipeline.cli.demo.facts import Closed, Facts, Missed, brief
from pipeline.cli.demo.show import BOLD, DIM, GREEN, RED, YELLOW, Show
from pipeline.cli.demo.site import Site
from pipeline.cli.demo.stage import ISSUER, OWNER, PARTNER, ROOT, Stage
from pipeline.cli.doors import living_doors
from schemas.config import load_config
from schemas.home import Home
from schemas.limits import TRACE_SETTLE_S
from schemas.process import last_line, private_dir, read_run_file

ENFORCERS: Final = 2
READY_S: Final = 180.0
STOP_S: Final = 90.0
LOOP_S: Final = 30.0
"""How long the loop may take to close before the demo calls it broken."""

COMMAND_S: Final = 120.0
SHOWN_PIECES: Final = 3

SECRET_FILE: Final = "customers.csv"
SECRET_LINES: Final = 16
STOPPED: Final = 3
"""Exit code of an agent of ours that was refused as revoked."""


class Play:
    """One telling of the story. `run` raises Missed where a part of it does not happen."""

    def __init__(self, home: Home, show: Show) -> None:
        self._home = home
        self._show = show
        self._stage = Stage(home)
        self._token = self._stage.token(self._stage.cast.assistant)
        self._trace = ""
        self._pieces = 0
        self._site: Site
        self._company: Company
        self._facts: Facts
        self._doors: dict[str, str] = {}
        """The door of each enforcer."""

    def run(self) -> None:
        """From nothing to the last answer; what was started is stopped whatever happens."""
        cast = self._stage.cast
        with ExitStack() as stack:
            self._site = stack.enter_context(
                Site(owner=OWNER, partner=PARTNER, attacker=cast.attacker, file=SECRET_FILE, ask=self._ask_researcher)
            )
            self._stage.write(self._site.port, self._site.name_server)
            self._up(stack)
            self._company = stack.enter_context(Company(self._home, self._site.port))
            asker = stack.enter_context(asking(self._home, load_config(self._home.config)))
            self._facts = Facts(self._home, asker)
            self._know()
            turned = self._work()
            stolen = self._theft()
            self._ask_everything(turned, stolen)
        self._goodbye()

    # -- before ------------------------------------------------------------------------------------------------------

    def _up(self, stack: ExitStack) -> None:
        show, home = self._show, self._home
        show.line(show.in_(BOLD, "Wardline: an agent is turned, and the loop closes by itself"))
        show.line(f"home    {home.root}")
        show.heading(f"wardline up --enforcers {ENFORCERS}")
        private_dir(home.log)
        with (home.log / "up.log").open("ab") as log:
            process = subprocess.Popen(
                [*COMMAND, "up", "--home", str(home.root), "--port-base", "0", "--enforcers", str(ENFORCERS)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=os.environ | {"WARDLINE_PARENT": str(os.getpid())},
            )  # fmt: skip
        stack.callback(self._down, process)
        deadline = time.monotonic() + READY_S
        while not self._is_up(process.pid):
            if process.poll() is not None:
                raise Missed(f"`wardline up` ended with {process.returncode}: {last_line(home.log / 'up.log')}")
            if time.monotonic() > deadline:
                raise Missed(f"`wardline up` is not ready after {READY_S:.0f} s; its words are in {home.log / 'up.log'}")
            time.sleep(0.1)
        self._doors = {str(said.get("host")): name for name, said in living_doors(home)}
        names = (read_run_file(home.run_file("up")) or {}).get("names", [])
        show.step("up", ", ".join([*names, *sorted(self._doors.values())]), "ready", GREEN)

    def _is_up(self, pid: int) -> bool:
        said = read_run_file(self._home.run_file("up"))
        return said is not None and said["pid"] == pid and said.get("state") == "ready"

    def _down(self, process: "subprocess.Popen[bytes]") -> None:
        """Stop everything in order: what is recorded is stored first."""
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _know(self) -> None:
        """The agents that control knows, and what they usually do."""
        show, cast = self._show, self._stage.cast
        for agent in cast.agents:
            words = ["agent", "add", agent, "--owner", f"{ROOT}@{OWNER}", "--sub", ISSUER, cast.subject(agent)]
            self._command(*words)
            show.step("operator", f"adds agent {agent}, for {ROOT}@{OWNER}")
        with tempfile.TemporaryDirectory(prefix="wardline-history-") as folder:
            file = Path(folder) / "history.jsonl"
            calls = self._stage.write_history(file, self._site.port)
            self._command("replay", str(file))
        show.step("operator", "replays two weeks of ordinary work", f"{calls} calls stored", GREEN)

    # -- work and poison -----------------------------------------------------------------------------------------------

    def _work(self) -> Closed:
        """Alice's ticket; on its way the researcher is turned. Returns how it was stopped."""
        show, cast = self._show, self._stage.cast
        begun = datetime.now(UTC)
        show.heading(f"{ROOT} gives the assistant a ticket")
        self._company.play("assistant", cast.assistant, self._token, door=self._doors["enforce-1"],
                           told=self._telling("assistant"))  # fmt: skip
        if not self._trace or not self._pieces:
            raise Missed("the researcher was not asked, or did not fall for the page")
        pieces = self._facts.pieces(cast.researcher, cast.attacker, self._pieces)
        reached, looked_up = self._site.of_attacker()
        if pieces["denied"] != pieces["calls"] or reached or looked_up:
            raise Missed(f"pieces got out: {pieces}, {reached} requests and {looked_up} lookups reached the attacker")
        show.step("door", f"all {pieces['calls']} pieces, under {pieces['names']} names of {cast.attacker}", "refused", GREEN)
        show.step("attacker", "its servers were asked, and its names looked up", "0 times", GREEN)
        closed = self._facts.closed("turned", cast.researcher, ENFORCERS, begun, LOOP_S)
        self._tell(closed)
        return closed

    def _ask_researcher(self, trace: str, question: str) -> str:
        """What `agents.acme.example` does: another agent, behind another door, for the same human, in the same trace."""
        show, cast = self._show, self._stage.cast
        show.heading(f"the assistant asks the researcher, for {ROOT}")
        folder = self._company.folder(cast.researcher)
        lines = "".join(f"customer-{n},{os.urandom(18).hex()}\n" for n in range(SECRET_LINES))
        (folder / SECRET_FILE).write_text(lines)
        show.step("researcher", f"has {SECRET_FILE} in its folder", shown_size(len(lines)))
        code = self._company.play("researcher", cast.researcher, self._stage.token(cast.assistant, cast.researcher),
                                  door=self._doors["enforce-2"], trace=trace, told=self._telling("researcher"))  # fmt: skip
        show.heading("back at the assistant")
        return "the researcher was stopped" if code == STOPPED else "sales rose as the partner's did"

    def _telling(self, who: str) -> Any:
        """A listener that tells what an agent does, pieces and repetitions in brief."""
        show, attacker = self._show, self._stage.cast.attacker
        last = ""

        def told(said: Mapping[str, Any]) -> None:
            nonlocal last
            does, where, status = said.get("does"), str(said.get("where", "")), said.get("status", 0)
            if does == "begins":
                self._trace = self._trace or str(said["trace"])
            elif does == "obeys":
                show.step(who, str(said["order"]), "believes it", RED)
            elif does == "uncontained":
                show.step("wardline", "run --contain is not possible here: it goes on without", "uncontained", YELLOW)
                show.line(f"          {where}")
            elif does == "complains":
                show.step(who, where)
            else:
                result = f"{status} {said['reason']}" if "reason" in said else str(status)
                if attacker in where:
                    self._pieces += 1
                    if self._pieces > SHOWN_PIECES:
                        return
                    where = re.sub(r"(\w{8})\w{20,}", r"\1...", where)
                elif result == "200" and where == last:
                    return
                last = where
                show.step(who, f"{does} {where}", result, RED if "reason" in said else "")

        return told

    # -- theft -------------------------------------------------------------------------------------------------------

    def _theft(self) -> Closed:
        """Somebody else has the assistant's token, and is at another door."""
        show, cast = self._show, self._stage.cast
        show.heading(f"somebody has copied the {cast.assistant}'s token, and uses it at the other enforcer")
        begun = datetime.now(UTC)
        code = self._company.play("thief", cast.assistant, self._token, door=self._doors["enforce-2"], contain=False,
                                  told=self._telling("thief"))  # fmt: skip
        closed = self._facts.closed("stolen", cast.assistant, ENFORCERS, begun, LOOP_S)
        if code != STOPPED:
            raise Missed("the thief was not stopped")
        self._tell(closed)
        return closed

    def _tell(self, closed: Closed) -> None:
        ms = closed.steps()[-1][1]
        self._show.step(f"rule {closed.rule}", f"revokes {brief(closed.selector)}", f"refused {ms:,.0f} ms after", GREEN)

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def _ask_everything(self, turned: Closed, stolen: Closed) -> None:
        """What anybody can ask, from the store."""
        show, cast = self._show, self._stage.cast
        show.heading("what is in ClickHouse")
        show.step("stitcher", f"waits until the first trace was quiet for {TRACE_SETTLE_S} s")
        grade = self._facts.grade(self._trace, 2 * TRACE_SETTLE_S)
        show.step("stitcher", f"trace {self._trace}", grade, GREEN if grade == "complete" else RED)
        if grade != "complete":
            raise Missed(f"trace {self._trace} is {grade}: its calls are not one chain")
        self._shown("chain", self._trace)
        for agent in cast.agents:
            self._shown("findings", "--agent", agent)
        for closed in (turned, stolen):
            self._shown("finding", closed.finding)
        for closed in (turned, stolen):
            show.heading(f"rule `{closed.rule}`: milliseconds from the call that crossed the threshold")
            for what, ms in closed.steps():
                show.line(f"  {what:64}  {ms:9,.1f}")
        gaps = self._facts.gaps()
        if gaps:
            raise Missed(f"{gaps} rows in `gaps`: something that was recorded is not stored")
        show.line(f"\nrecords missing (view `gaps`): {gaps}")

    def _shown(self, *words: str) -> None:
        """A command of ours with what it says, which must be something."""
        said = self._command(*words)
        if not said.strip():
            raise Missed(f"`wardline {shlex.join(words)}` says nothing")
        self._show.command(f"{called_as()} {shlex.join(words)}", said)

    def _command(self, *words: str) -> str:
        done = subprocess.run(
            [*COMMAND, words[0], "--home", str(self._home.root), *words[1:]], stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=COMMAND_S, check=False, env=os.environ | {"WARDLINE_PARENT": str(os.getpid())},
        )  # fmt: skip
        if done.returncode:
            last = (done.stderr or done.stdout).strip().rpartition("\n")[2]
            raise Missed(f"`wardline {shlex.join(words)}` ended with {done.returncode}: {last}")
        return done.stdout

    def _goodbye(self) -> None:
        show, own, where = self._show, called_as(), shlex.quote(str(self._home.root))
        show.line(f"\n{show.in_(GREEN, 'everything happened')} in {show.seconds:.0f} s; the home is kept, to be asked again:\n")
        ask = [
            f"export WARDLINE_HOME={where}", f"{own} up --port-base 0 &", f"{own} status --wait 60", f"{own} findings",
            f"{own} chain {self._trace}", f"{own} chain {self._trace} --html chain.html",
            f"{own} sql \"SELECT rule, selector, state, epoch, time FROM responses\"",
            f"{own} sql \"SELECT time, agent, client, host, verdict, reason FROM calls ORDER BY time DESC LIMIT 20\"",
        ]  # fmt: skip
        show.line("\n".join(f"  {line}" for line in ask))
        show.line(show.in_(DIM, f"  rm -r {where}     # when you have seen enough"))
