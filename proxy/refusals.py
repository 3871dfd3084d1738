"""The two sentences with which a parameter is refused. Pure."""

from sessions.errors import InvalidRequest


def unsupported(param: str, supported: str = "") -> InvalidRequest:
    """For what is known and not built: a caller who sends it relies on it."""
    hint = f"; {supported}" if supported else ""
    return InvalidRequest(
        f"'{param}' is not supported by this server{hint}.", param=param, code="unsupported_parameter"
    )


def invalid(param: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{param}': {reason}.", param=param, code="invalid_value")
