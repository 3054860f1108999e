"""Processes that ask and answer through one log, killed at random moments and started again.

Each writes what it did to a ledger of its own, which is on the disk before it goes on, so that afterwards the log can
be held against what everybody was told. ``kill_at_random`` kills; ``check_answers`` and ``check_run`` compare.

Another run than the one here may ask: it has to go on where it was when it is started again, and to return once it has
seen the file ``stop`` in the folder, or by itself.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cautious_imitation.oracles.log import QueryLog, Status
from cautious_imitation.oracles.protocol import Act, Answer, AnswerConflict, Decline, Query, UnknownQuery

N_ACTIONS = 1000
LEASE_SECONDS = 0.1
_LOOK_SECONDS = 0.002


class Ledger:
    """Lines that are on the disk when ``write`` returns. One that a kill left unfinished was never acknowledged."""

    def __init__(self, path: Path) -> None:
        whole = path.read_bytes().rpartition(b"\n") if path.exists() else (b"", b"", b"")
        self._file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(self._file, len(whole[0]) + len(whole[1]))
        os.lseek(self._file, 0, os.SEEK_END)

    def write(self, *line: object) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")
        os.fsync(self._file)


def lines(path: Path) -> list[list]:
    """The whole lines of a ledger."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def said(answer: Answer | None) -> list:
    """An answer as a ledger has it."""
    return ["declined", answer.reason] if isinstance(answer, Decline) else list(answer.actions) if answer else []


def step_queries(seed: int, step: int, used: int) -> list[Query]:
    """What the run asks in a step, which depends on all answers before it."""
    return [
        Query((step, used, i), n_actions=N_ACTIONS, id=f"run/{step}/{i}", asker="run", episode=step)
        for i in range(random.Random(f"{seed}/{step}").randint(1, 3))
    ]


def digest(used: int, answers: Sequence[list]) -> int:
    """What the run has made of its answers so far; their order matters."""
    return random.Random(f"{used}/{answers}").getrandbits(30)


def ask(folder: Path, seed: int) -> None:
    """The run: step by step, until it is told to stop. It is where its ledger says."""
    log = QueryLog(folder / "questions.db")
    path = folder / "run.ledger"
    ledger, used, step = Ledger(path), 0, 0
    for _, answers in lines(path):
        used, step = digest(used, [answer for _, answer in answers]), step + 1
    while True:
        queries = step_queries(seed, step, used)
        ids = [query.id for query in queries]
        if (folder / "stop").exists() and not _is_posted(log, ids[0]):
            return
        log.post(queries)
        answers: dict[str, Answer] = {}
        while len(answers) < len(queries):
            time.sleep(_LOOK_SECONDS)
            answers = log.take(ids)
        got = [(id, said(answers[id])) for id in ids]
        ledger.write(step, got)
        used, step = digest(used, [answer for _, answer in got]), step + 1


def _is_posted(log: QueryLog, id: str) -> bool:
    try:
        log.entry(id)
    except UnknownQuery:
        return False
    return True


def answer(folder: Path, name: str) -> None:
    """Somebody who answers whatever is open, for ever; an answer that was given is acknowledged in the ledger."""
    log = QueryLog(folder / "questions.db", lease_seconds=LEASE_SECONDS)
    ledger, chance = Ledger(folder / f"{name}.ledger"), random.SystemRandom()
    while True:
        claimed = log.entries(Status.CLAIMED, limit=1)
        # Some answer what others are at, or have answered in the meantime.
        query = claimed[0].query if claimed and chance.random() < 0.3 else log.claim(name)
        if query is None:
            time.sleep(_LOOK_SECONDS)
            continue
        time.sleep(chance.uniform(0, 0.005))
        fate = chance.random()
        if fate < 0.1:
            log.release(query.id, name)
            continue
        given = Decline(f"no idea, {name}") if fate < 0.2 else Act((chance.randrange(N_ACTIONS),))
        try:
            ledger.write(query.id, said(given), log.answer(query.id, given, name))
        except AnswerConflict:
            ledger.write(query.id, said(given), "conflict")


def serve() -> None:
    """Start processes on demand without importing anything anew: a line ``role argument ...`` gives a pid.

    A role is one of the two here, or ``module:function`` of another module.
    """
    roles = {"ask": lambda folder, seed: ask(Path(folder), int(seed)), "answer": lambda *a: answer(Path(a[0]), a[1])}
    for line in sys.stdin:
        role, *arguments = json.loads(line)
        if role == "wait":
            status = os.waitstatus_to_exitcode(os.waitpid(int(arguments[0]), 0)[1])
            print(status, flush=True)  # noqa: T201 -- to whoever started the server
            continue
        if role not in roles:
            # Before the process is made, so that starting it again takes no time.
            module, _, function = role.partition(":")
            roles[role] = getattr(importlib.import_module(module), function)
        if not (pid := os.fork()):
            roles[role](*arguments)
            return
        print(pid, flush=True)  # noqa: T201


class Forks:
    """``serve`` in a process of its own."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.kill_harness"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[1],
        )  # fmt: skip

    def told(self, *command: object) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([str(word) for word in command]) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def close(self) -> None:
        self._server.communicate()


class Process:
    """One that is started again after every kill, by the server."""

    def __init__(self, forks: Forks, command: Sequence[object]) -> None:
        self._forks, self._command = forks, command
        self.start()

    def start(self) -> None:
        self._pid = self._forks.told(*self._command)
        self._waited_for = False

    def wait(self) -> int:
        self._waited_for = True
        return self._forks.told("wait", self._pid)

    def signal(self) -> None:
        """Kill it, unless its number may be another process's already."""
        if not self._waited_for:
            os.kill(self._pid, signal.SIGKILL)

    def kill(self) -> bool:
        """Kill it; whether it lived. It may have ended by itself before that, but not in an error."""
        self.signal()
        status = self.wait()
        assert status in (-signal.SIGKILL, 0), f"{self._command} ended with {status}; what it said is above"
        return status != 0


@contextmanager
def _forks() -> Iterator[Forks]:
    forks = Forks()
    try:
        yield forks
    finally:
        forks.close()


def kill_at_random(
    folder: Path,
    *,
    n_kills: int,
    seed: int,
    run: Sequence[object] | None = None,
    n_answerers: int = 3,
    mean_seconds: float = 0.02,
) -> int:
    """Let a run and answerers work in ``folder``, killing one of them or all again and again.

    Args:
        folder: where ``questions.db``, the ledgers and the file ``stop`` are.
        n_kills: how many, after which the run may end in peace.
        seed: of who is killed when.
        run: what asks, as ``(module:function, argument, ...)``; by default ``ask``.
        n_answerers: called p0, p1 and so on.
        mean_seconds: between kills.

    Returns:
        Kills of living processes: fewer than ``n_kills`` if the run ended before.
    """
    rng, done = random.Random(seed), 0
    with _forks() as forks, ExitStack() as living:
        asker = Process(forks, ("ask", folder, seed) if run is None else run)
        others = [Process(forks, ("answer", folder, f"p{i}")) for i in range(n_answerers)]
        for process in (asker, *others):
            living.callback(process.signal)
        ended = False
        while done < n_kills and not ended:
            time.sleep(rng.expovariate(1 / mean_seconds))
            victims = [asker, *others] if rng.random() < 0.05 else [rng.choice([asker, asker, *others])]
            for victim in victims:
                victim.signal()
            for victim in victims:
                lived = victim.kill()
                done += lived
                ended |= not lived
            for victim in victims:
                if not (ended and victim is asker):
                    victim.start()
        (folder / "stop").touch()
        if not ended:
            status = asker.wait()
            assert status == 0, f"the run ended with {status}; what it said is above"
        living.pop_all()
        for process in others:
            process.kill()
    return done


@dataclass(frozen=True)
class Findings:
    """What was compared: questions in the log, and answers of which the answerers had been told that they count."""

    n_questions: int
    n_acknowledged: int


def check_answers(folder: Path) -> Findings:
    """Hold the log against those who answered, and against SQLite's own check of the file."""
    connection = sqlite3.connect(folder / "questions.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    log = QueryLog(folder / "questions.db")
    entries = {entry.query.id: entry for entry in log.entries()}
    log.close()
    acknowledged: dict[str, str] = {}
    for path in folder.glob("p*.ledger"):
        for id, given, new in lines(path):
            entry = entries[id]
            if new == "conflict":
                assert entry.answered_by is not None, f"{id}: nobody's answer, though there was a conflict"
                continue
            assert new is True, f"{id}: the first answer of {path.stem} was taken for a repetition"
            assert id not in acknowledged, f"{id}: acknowledged to both {acknowledged[id]} and {path.stem}"
            assert (said(entry.answer), entry.answered_by) == (given, path.stem), f"{id}: another answer is in the log"
            acknowledged[id] = path.stem
    return Findings(len(entries), len(acknowledged))


def check_run(folder: Path, seed: int) -> None:
    """Hold the log against what the run of ``ask`` did: the answers it used, each once, in order, and no others."""
    log = QueryLog(folder / "questions.db")
    entries = {entry.query.id: entry for entry in log.entries()}
    log.close()
    used, asked = 0, []
    for step, (written, answers) in enumerate(lines(folder / "run.ledger")):
        assert written == step, f"step {written} comes in the place of step {step}"
        queries = step_queries(seed, step, used)
        assert [id for id, _ in answers] == [query.id for query in queries]
        for query, (id, got) in zip(queries, answers, strict=True):
            assert entries[id].query == query
            assert said(entries[id].answer) == got, f"{id}: the run used an answer that is not in the log"
            assert entries[id].status in (Status.ANSWERED, Status.DECLINED)
            assert entries[id].taken_at is not None
        used = digest(used, [got for _, got in answers])
        asked += [query.id for query in queries]
    assert list(entries) == asked, "the log has other questions than the run used"


if __name__ == "__main__":
    serve()
