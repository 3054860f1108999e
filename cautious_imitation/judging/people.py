"""People as judges: pairs wait in a log until somebody judges them in the console."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from os import PathLike

from cautious_imitation.judging.protocol import Open, Response, Ruling
from cautious_imitation.oracles.judgements import JudgementLog, TranscriptPair


class PeopleJudge:
    """Puts pairs into a log, where people find them in the console, and takes their verdicts from there.

    It never waits: what nobody has judged is open, and the same pairs, shown again, find what was said since.

    Args:
        log: the log, or the path of its file.
        name: what the verdicts are filed under. Who gave each is in the log.

    Raises:
        ImportError: if the extra ``oracle`` is not installed, with which people judge.
        LogError: from ``judge``, if the file cannot be used.
    """

    def __init__(self, log: JudgementLog | str | PathLike[str], name: str = "people") -> None:
        if find_spec("starlette") is None:
            raise ImportError("PeopleJudge takes the console: pip install 'cautious-imitation[oracle]'")
        self.log = log if isinstance(log, JudgementLog) else JudgementLog(log)
        self.name = name

    def judge(self, pairs: Sequence[TranscriptPair]) -> Iterator[Response]:
        """Responses, in order.

        Raises:
            AnswerConflict: if another pair of the same id is in the log.
        """
        from cautious_imitation.oracles.web.judgement_pages import swapped

        self.log.post(pairs)
        for pair in pairs:
            verdict = self.log.entry(pair.id).verdict
            if verdict is None:
                yield Open(f"people judge them in the console (cautious-imitation oracle serve {self.log.path})")
            else:
                # The console shuffles what it shows, too.
                yield Ruling(verdict, reversed=swapped(pair.id))
