from ._base import Composite as Composite
from ._base import Method as Method
from ._catalogue import METHODS as METHODS
from ._catalogue import build_method as build_method
from ._catalogue import list_methods as list_methods
from ._catalogue import method_class as method_class
from ._catalogue import method_options as method_options
from ._catalogue import resolve_methods as resolve_methods
