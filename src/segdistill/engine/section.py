"""What all sections of a configuration share."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of the configuration; the docstring under a key is its entry in the reference."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
