"""What all sections of a configuration share."""

from collections.abc import Callable, Container, Mapping
from typing import Any, ClassVar, NamedTuple

import pydantic
from pydantic import ConfigDict

from segdistill._options import Checked


class Owner(NamedTuple):
    """The key of the same section without which another key says nothing."""

    key: str
    line: str
    """What is wrong if the owner does not use the other key, and what to do; `{}` stands for the owner's value."""
    uses: Callable[[Any], bool] = bool
    """Whether the owner, with its value, uses the other key; any value but null, false and 0 does if left out."""


def owned_by(key: str, *values: str) -> Owner:
    """The owner of an option that some of its values use.

    Args:
        key: of the same section.
        *values: with which the option has a meaning.
    """
    line = f"of {key}={' or '.join(values)} alone, and {key} is {{}}; leave it out"
    return Owner(key, line, lambda value: value in values)


class Section(Checked):
    """A section of the configuration; the docstring under a key is its entry in the reference."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    owners: ClassVar[Mapping[str, Owner]] = {}
    """Key → the key that uses it. One whose owner does not use it is refused unless it has its default, which a run
    writes out with all others."""

    @pydantic.model_validator(mode="after")
    def _check_owners(self) -> "Section":
        for key, owner in self.owners.items():
            value = getattr(self, owner.key)
            if not owner.uses(value) and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key}: {owner.line.format('null' if value is None else value)}")
        return self

    @classmethod
    def replace(cls, section: dict[str, Any], key: str, value: Any, keep: Container[str] = ()) -> None:
        """Give a key of a section, as it is written, another value; keys that only the former one used go with it.

        Args:
            section: as it is written; changed here.
            key: of the section.
            value: of the key from now on.
            keep: keys that stay, so that they are refused if nothing uses them.
        """
        section[key] = value
        for other, owner in cls.owners.items():
            if owner.key == key and other in section and other not in keep and not owner.uses(value):
                cls.replace(section, other, None, keep)
                del section[other]


class Open(Section):
    """A section whose other keys are options of the entry that `name` names."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True, allow_inf_nan=False)

    @property
    def extra_keys(self) -> dict[str, Any]:
        """The keys that are not the section's own."""
        return dict(self.model_extra or {})

    def _complete(self, options: Mapping[str, Any]) -> None:
        """Write the entry's options out in full."""
        assert self.__pydantic_extra__ is not None
        self.__pydantic_extra__.update({k: v for k, v in options.items() if k not in type(self).model_fields})
