"""What all sections of a configuration share."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of the configuration; the docstring under a key is its entry in the reference."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


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
