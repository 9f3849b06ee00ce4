from .fixtures import hub_server  # noqa: F401
