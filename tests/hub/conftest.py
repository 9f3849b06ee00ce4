from .fixtures import hub_server  # noqa: F401
from .space import space, space_run  # noqa: F401
