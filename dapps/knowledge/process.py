"""Runs a guideline for one patient: PROforma's task states, and commitments that name who decided.

A task is dormant, in progress, completed or discarded (Sutton and Fox, JAMIA 2003). It starts when all tasks before it
are done, not all of them discarded, and its condition holds; an unknown condition leaves it dormant. The engine never
commits: a person does, by name, and says why where it departs from the recommendation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum

from dapps.knowledge.document import Action, AnyTask, Decision, Enquiry, Plan
from dapps.knowledge.expression import Value
from dapps.knowledge.guideline import Guideline
from dapps.knowledge.record import Observation, Record, check, values
from dapps.knowledge.source import Path
from dapps.knowledge.weigh import Weighed, weigh


class State(StrEnum):
    """The states of a task."""

    DORMANT = "dormant"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    DISCARDED = "discarded"


DONE = (State.COMPLETED, State.DISCARDED)


class CommitRefused(Exception):
    """A commitment or confirmation that may not be made; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Commitment:
    """A decision: who took it, when, on which guideline, and what was recommended. Holds no patient data."""

    decision: str
    candidate: str
    by: str
    at_s: float
    recommended: str | None
    reason: str
    acknowledged: tuple[str, ...]
    guideline: str
    version: str
    digest: str

    @property
    def followed(self) -> bool:
        """True if the person took the recommended candidate."""
        return self.candidate == self.recommended


class Process:
    """One run of a guideline.

    Args:
        guideline: the guideline to run.
        clock: seconds since the epoch, for commitments.
    """

    def __init__(self, guideline: Guideline, clock: Callable[[], float]) -> None:
        self._guideline, self._clock = guideline, clock
        self._record: dict[str, Observation] = {}
        self._results: dict[str, Value | None] = {}
        self._states = {name: State.DORMANT for name in guideline.tasks}
        self.commitments: tuple[Commitment, ...] = ()
        self.confirmed: dict[str, str] = {}
        self._perform()

    @property
    def states(self) -> dict[str, State]:
        """The state of every task by name."""
        return dict(self._states)

    def put(self, record: Record) -> None:
        """Adds or changes data; an observation of None makes a field unknown again.

        Raises:
            RecordRefused: a field is unknown or its value does not fit; nothing is changed.
        """
        check(record, self._guideline)
        self._record |= record
        self._perform()

    def recommend(self, decision: str) -> Weighed:
        """The engine's present recommendation, whatever the decision's state."""
        return weigh(self._guideline, self._record, self._decision(decision))

    def waits_for(self, enquiry: str) -> tuple[str, ...]:
        """The fields that an enquiry still lacks."""
        task = self._guideline.tasks[enquiry][1]
        needed = task.requires if isinstance(task, Enquiry) else []
        return tuple(name for name in needed if self._record.get(name, Observation(None)).value is None)

    def commit(
        self, decision: str, candidate: str, by: str, reason: str = "", acknowledged: Collection[str] = ()
    ) -> Commitment:
        """A named person decides.

        Args:
            decision: its name.
            candidate: the name of the option taken.
            by: the person's name.
            reason: why, if it departs from the recommendation.
            acknowledged: the open arguments that the person has looked at, if the recommendation is provisional.

        Raises:
            CommitRefused: the decision is not in progress, or name, reason or acknowledgement is missing.
        """
        task = self._decision(decision)
        who = _person(by)
        if self._states[decision] is not State.IN_PROGRESS:
            lacking = ", ".join(name for enquiry in task.after for name in self.waits_for(enquiry))
            raise CommitRefused(f"{decision} is {self._states[decision]}" + (f": {lacking} unknown" if lacking else ""))
        if candidate not in [option.name for option in task.candidates]:
            raise CommitRefused(f"{decision} has no candidate named {candidate}")
        weighed = self.recommend(decision)
        name = weighed.recommended.name if weighed.recommended else None
        if candidate != name and not reason.strip():
            raise CommitRefused(f"{name or 'nothing'} is recommended: say why it is to be {candidate}")
        missing = sorted(set(weighed.open) - set(acknowledged)) if candidate == name else []
        if missing:
            raise CommitRefused(f"not asked yet: {', '.join(missing)}; look at them and acknowledge them")
        document = self._guideline.document
        file = (document.id, document.version, self._guideline.digest)
        commitment = Commitment(decision, candidate, who, self._clock(), name, reason.strip(), weighed.open, *file)
        self.commitments += (commitment,)
        self._results[decision] = candidate
        self._states[decision] = State.COMPLETED
        self._perform()
        return commitment

    def confirm(self, action: str, by: str) -> None:
        """Records that a named person has done an action.

        Raises:
            CommitRefused: it is no action in progress, or no name was given.
        """
        who, task = _person(by), self._guideline.tasks.get(action)
        if task is None or not isinstance(task[1], Action) or self._states[action] is not State.IN_PROGRESS:
            raise CommitRefused(f"{action} is no action that is in progress")
        self.confirmed[action] = who
        self._states[action] = State.COMPLETED
        self._perform()

    def _decision(self, name: str) -> Decision:
        decision = self._guideline.decisions.get(name)
        if decision is None:
            raise CommitRefused(f"there is no decision named {name}")
        return decision

    def _perform(self) -> None:
        """Applies all implied changes of state. It ends, because every change moves a task forward."""
        case_values = values(self._record, self._guideline)
        while any([self._moved(path, task, case_values) for path, task in self._guideline.tasks.values()]):
            pass

    def _moved(self, path: Path, task: AnyTask, case_values: dict[str, Value | None]) -> bool:
        before = self._states[task.name]
        after = before
        if before is State.DORMANT:
            after = self._started(path, task, case_values)
        elif before is State.IN_PROGRESS:
            after = self._ended(path, task, case_values)
        self._states[task.name] = after
        return after is not before

    def _started(self, path: Path, task: AnyTask, case_values: dict[str, Value | None]) -> State:
        parent = self._parent(path)
        if parent in DONE:
            return State.DISCARDED
        antecedents = [self._states[name] for name in task.after]
        if parent is State.DORMANT or any(state not in DONE for state in antecedents):
            return State.DORMANT
        if antecedents and all(state is State.DISCARDED for state in antecedents):
            return State.DISCARDED
        when = self._guideline.conditions.get((*path, "when"))
        holds = when.truth(case_values, self._results) if when else True
        return {True: State.IN_PROGRESS, False: State.DISCARDED, None: State.DORMANT}[holds]

    def _ended(self, path: Path, task: AnyTask, case_values: dict[str, Value | None]) -> State:
        abort = self._guideline.conditions.get((*path, "abort_if"))
        if self._parent(path) is State.DISCARDED or (abort and abort.truth(case_values, self._results)):
            return State.DISCARDED
        if isinstance(task, Enquiry) and not self.waits_for(task.name):
            return State.COMPLETED
        if isinstance(task, Plan) and all(self._states[inner.name] in DONE for inner in task.tasks):
            return State.COMPLETED
        return State.IN_PROGRESS

    def _parent(self, path: Path) -> State:
        """The state of the plan around a task; the file's own plan is always in progress."""
        return next(
            (self._states[name] for name, (where, _) in self._guideline.tasks.items() if where == path[:-2]),
            State.IN_PROGRESS,
        )


def _person(by: str) -> str:
    name = " ".join(by.split())
    if not any(letter.isalpha() for letter in name) or len(name) > 200:
        raise CommitRefused("a person's name is needed: the engine recommends, a person decides")
    return name
