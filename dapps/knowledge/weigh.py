"""Weighs the arguments of a decision on one record and recommends a candidate if one can be recommended.

Net support follows PROforma: the weights of `+` less those of `-`; `++` confirms, `--` excludes, and excluding beats
confirming. An unknown argument makes the net support a range. A candidate is recommended only if nothing unknown could
change that, so knowing less never recommends more. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from dapps.knowledge.document import Argument, Candidate, Decision
from dapps.knowledge.expression import Value
from dapps.knowledge.guideline import Guideline
from dapps.knowledge.record import Record, values
from dapps.knowledge.truth import Truth

INFINITE = Decimal("Infinity")
Truths = Mapping[str, Truth]


@dataclass(frozen=True, slots=True)
class Option:
    """A weighed candidate.

    `net` is the sum of the `+` and `-` that hold; `lowest` and `highest` bound the net support over everything unknown,
    and are infinite where the candidate is confirmed or excluded.
    """

    candidate: Candidate
    net: Decimal
    lowest: Decimal
    highest: Decimal
    confirmed: bool
    excluded: bool

    @property
    def conflict(self) -> bool:
        """True if it is both confirmed and excluded: the exclusion stands, and a person must look."""
        return self.confirmed and self.excluded

    @property
    def rule(self) -> Truth:
        """Whether its net support reaches its threshold, `recommend_at`."""
        if self.lowest >= self.candidate.recommend_at:
            return True
        return False if self.highest < self.candidate.recommend_at else None

    @property
    def symbol(self) -> str:
        """``--`` excluded, ``++`` confirmed, else the sign of the net support: ``+``, ``-`` or ``0``."""
        if self.excluded:
            return "--"
        if self.confirmed:
            return "++"
        return "+" if self.net > 0 else "-" if self.net < 0 else "0"


@dataclass(frozen=True, slots=True)
class Weighed:
    """One decision on one record.

    `recommended` is None if no candidate can be recommended. `provisional` is True if an argument marked `open` is
    unknown and could change the recommendation; `open` names those arguments.
    """

    decision: Decision
    values: Mapping[str, Value | None]
    truths: Truths
    options: tuple[Option, ...]
    recommended: Candidate | None
    provisional: bool
    open: tuple[str, ...]


def weigh(guideline: Guideline, record: Record, decision: Decision | None = None) -> Weighed:
    """Weighs a decision, the guideline's first if none is named."""
    decision = decision or guideline.decision
    case_values = values(record, guideline)
    conditions = {argument.id: guideline.condition(decision.name, argument.id) for argument in decision.arguments}
    truths = {name: condition.truth(case_values) for name, condition in conditions.items()}
    lasting = {name: condition.lasting(case_values) for name, condition in conditions.items()}
    options = _options(decision, truths, lasting, strict=False)
    recommended = _recommended(options)
    firm = _recommended(_options(decision, truths, lasting, strict=True))
    provisional = recommended is not None and firm != recommended
    open_arguments = tuple(
        argument.id
        for argument in decision.arguments
        if truths[argument.id] is None and argument.when_unknown == "open" and _counts(argument)
    )
    return Weighed(
        decision, case_values, truths, options, recommended, provisional, open_arguments if provisional else ()
    )


def _options(decision: Decision, truths: Truths, lasting: Truths, strict: bool) -> tuple[Option, ...]:
    return tuple(_option(candidate, decision, truths, lasting, strict) for candidate in decision.candidates)


def _option(candidate: Candidate, decision: Decision, truths: Truths, lasting: Truths, strict: bool) -> Option:
    net = low = high = Decimal(0)
    confirmed = excluded = barred = may_confirm = may_exclude = False
    for argument in decision.arguments:
        support, truth = argument.supports.get(candidate.name), truths[argument.id]
        if support is None or truth is False or (truth is None and _waived(argument, strict)):
            continue
        if support in ("++", "--"):
            confirmed |= support == "++" and truth is True
            excluded |= support == "--" and truth is True
            barred |= support == "--" and lasting[argument.id] is True
            may_confirm |= support == "++"
            may_exclude |= support == "--"
            continue
        weight = argument.weight if support == "+" else -argument.weight
        if truth is True:
            net, low = net + weight, low + weight
            # An opposing argument that holds only while a value is unknown may vanish: nobody else may win by it.
            high += weight if lasting[argument.id] or weight > 0 else Decimal(0)
        else:
            low, high = low + min(weight, Decimal(0)), high + max(weight, Decimal(0))
    # Excluding beats confirming, so the two infinities never meet in a sum.
    lowest = -INFINITE if may_exclude else INFINITE if confirmed else low
    highest = -INFINITE if barred else INFINITE if may_confirm else high
    return Option(candidate, net, lowest, highest, confirmed, excluded)


def _recommended(options: tuple[Option, ...]) -> Candidate | None:
    """The candidate that meets its threshold and cannot be overtaken; else the deferring one that meets its threshold.

    Ties: file order.
    """
    for index, option in enumerate(options):
        if option.rule and all(
            other.rule is False or option.lowest > other.highest or (option.lowest == other.highest and index < place)
            for place, other in enumerate(options)
            if place != index
        ):
            return option.candidate
    deferring = (option.candidate for option in options if option.candidate.defers and option.rule)
    return next(deferring, None)


def _waived(argument: Argument, strict: bool) -> bool:
    """True if the argument blocks no recommendation while it is unknown."""
    return argument.when_unknown == "ignored" or (argument.when_unknown == "open" and not strict)


def _counts(argument: Argument) -> bool:
    return argument.weight > 0 or any(support in ("++", "--") for support in argument.supports.values())
