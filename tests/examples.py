"""How many examples the properties are tested with, by hypothesis' profile.

By default the number is small, because all of them together would take a tenth of the time of the
tests. `--hypothesis-profile=thorough` has all of them.
"""

from __future__ import annotations

from hypothesis import settings

DEFAULT, THOROUGH = "pyproxy", "thorough"
_PART = 3


def register_profiles() -> None:
    """Register the profiles, and load the default one."""
    # The time of an example depends on the machine's load more than on the code.
    settings.register_profile(DEFAULT, deadline=None, max_examples=50)
    settings.register_profile(THOROUGH, deadline=None, max_examples=100)
    settings.load_profile(DEFAULT)


def examples(number: int) -> int:
    """Return the number of examples of a property that has `number` in the thorough profile."""
    return number if settings.get_current_profile_name() == THOROUGH else -(-number // _PART)
