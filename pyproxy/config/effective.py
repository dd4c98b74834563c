"""The configuration in force, in Kubernetes' form: for /configz, and for --write-config-to."""

from __future__ import annotations

import enum

from pyproxy.config import durations, flags, values
from pyproxy.config.flags import Flag
from pyproxy.config.given import FLAGS, Given
from pyproxy.config.schema import ZERO, KubeProxyConfiguration, Leaf, is_zero, leaves, with_leaves
from pyproxy.config.settings import SyncPeriods


def configuration(
    given: Given, file: KubeProxyConfiguration, pace: SyncPeriods
) -> KubeProxyConfiguration:
    """Put into a file's configuration what counts instead, and the defaults of what it leaves open.

    Loaded from a file of its own, the result means the same.
    """
    said = dict(leaves(file))
    found: dict[str, Leaf] = {}
    for flag in FLAGS:
        # What a file has for other modes stays as it is.
        if flag.fields:
            field = given.field(flag)
            if given.has(flag) or is_zero(field, said[field]):
                found[field] = _leaf(flag, given)
    found[given.field(flags.SYNC_PERIOD)] = durations.text(pace.sync_period)
    found[given.field(flags.MIN_SYNC_PERIOD)] = durations.text(pace.min_sync_period)
    return with_leaves(file, found)


def _leaf(flag: Flag[object], given: Given) -> Leaf:
    zero, value, text = ZERO[flag.fields[0]], given[flag], given.text(flag)
    if isinstance(zero, tuple):
        return values.items(text)
    if isinstance(zero, dict):
        return dict(values.booleans_by_name(text))
    if isinstance(zero, float):
        return float(text)
    if isinstance(value, enum.Enum):
        return str(value.value)
    if flag in (flags.HEALTHZ_BIND_ADDRESS, flags.METRICS_BIND_ADDRESS):
        # Empty means the default in a file, where it means nowhere as a flag.
        text = str(value) if value is not None else "0"
    return value if isinstance(value, bool | int) else text
