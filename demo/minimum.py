"""What the numbers of these scripts' command lines may be."""

from concat_id.config.parser import Namespace
from concat_id.errors import UserError


def check_minimum(arguments: Namespace, **minimum: int) -> None:
    """Raise `UserError` for the first option of a parsed command line that is less than `minimum` says."""
    for name, smallest in minimum.items():
        if getattr(arguments, name) < smallest:
            raise UserError(f"command line: --{name.replace('_', '-')}: found {getattr(arguments, name)}, expected at least {smallest}")
