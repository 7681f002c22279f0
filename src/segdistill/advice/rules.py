"""Rules from facts about a run to advice: data in `rules.yaml`, read and checked here."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

Fact = float | int | bool | str | None
"""What is known of a run; None: it is not known."""


class Condition(BaseModel):
    """When a fact speaks for a rule: in a range, or equal to a value."""

    model_config = ConfigDict(extra="forbid")

    least: float | None = Field(None, alias="from")
    """The fact is at least this."""
    below: float | None = None
    """The fact is less than this."""
    equal: bool | float | None = Field(None, alias="is")
    """The fact is this."""

    @pydantic.model_validator(mode="after")
    def _says_something(self) -> "Condition":
        if self.least is None and self.below is None and self.equal is None:
            raise ValueError("expected from, below or is")
        return self

    def holds(self, fact: Fact) -> bool:
        """Whether a fact meets the condition; one that is not known meets none.

        Args:
            fact: a number or a truth value.
        """
        if fact is None or isinstance(fact, str):
            return False
        if self.equal is not None and fact != self.equal:
            return False
        if self.least is not None and fact < self.least:
            return False
        return self.below is None or fact < self.below


class Rule(BaseModel):
    """One piece of advice, and when it is given."""

    model_config = ConfigDict(extra="forbid")

    name: str
    """By which the rule is known."""
    when: dict[str, Condition]
    """Fact → condition; all of them must hold."""
    unless: dict[str, Condition] = Field(default_factory=dict)
    """Fact → condition; none of them may hold."""
    say: str
    """What to do or to expect."""
    because: str
    """The facts that say so."""
    source: str
    """What the rule rests on."""
    alone: bool = False
    """Whether the rule speaks only where no other does."""

    def holds(self, facts: Mapping[str, Fact]) -> bool:
        """Whether all conditions of `when` hold, and none of `unless`.

        Args:
            facts: by name.
        """
        met = all(condition.holds(facts.get(name)) for name, condition in self.when.items())
        return met and not any(condition.holds(facts.get(name)) for name, condition in self.unless.items())

    def advice(self, facts: Mapping[str, Fact]) -> dict[str, str]:
        """The rule's texts with the facts in them: `rule`, `say`, `because`, `source`.

        Args:
            facts: by name.
        """
        known = {name: _Unknown() if fact is None else fact for name, fact in facts.items()}
        say, because = (text.format(**known) for text in (self.say, self.because))
        return {"rule": self.name, "say": say, "because": because, "source": self.source}


class _Unknown:
    """Stands in a text for a number that is not known."""

    def __format__(self, _spec: str) -> str:
        return "an unknown number"


@cache
def load_rules() -> tuple[Rule, ...]:
    """The rules of `rules.yaml`, in their order."""
    text = files("segdistill.advice").joinpath("rules.yaml").read_text(encoding="utf-8")
    return tuple(Rule.model_validate(entry) for entry in yaml.safe_load(text))


def advise(facts: Mapping[str, Fact], rules: Sequence[Rule] | None = None) -> list[dict[str, str]]:
    """What the rules say to some facts.

    Args:
        facts: as `look` returns them.
        rules: others than the package's.

    Returns:
        A mapping of `rule`, `say`, `because`, `source` for each rule that holds, in the order of the rules.
    """
    rules = load_rules() if rules is None else rules
    found = [rule for rule in rules if not rule.alone and rule.holds(facts)]
    return [rule.advice(facts) for rule in found or [rule for rule in rules if rule.alone and rule.holds(facts)]]
