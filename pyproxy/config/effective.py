"""The configuration in force, in Kubernetes' form: for /configz, and for --write-config-to."""

from __future__ import annotations

import enum

from pyproxy.config import durations, flags, values
from pyproxy.config.flag import Flag
from pyproxy.config.given import FLAGS, Given
from pyproxy.config.schema import ZERO, KubeProxyConfiguration, Leaf, is_zero, leaves, with_leaves
from pyproxy.config.settings import SyncPeriods


def configuration(
    given: Given, file: KubeProxyConfiguration, pace: SyncPeriods
) -> KubeProxyConfiguration:
    """Return a file's configuration with the flags that override it, and with all defaults.

    The result has the same meaning when it is loaded from a file.
    """
    file_leaves = dict(leaves(file))
    found: dict[str, Leaf] = {}
    for flag in FLAGS:
        # The file's fields for other modes stay as they are.
        if flag.fields:
            field = given.field(flag)
            if given.has(flag) or is_zero(field, file_leaves[field]):
                found[field] = _leaf(flag, given)
    found[given.field(flags.SYNC_PERIOD)] = durations.text(pace.sync_period)
    found[given.field(flags.MIN_SYNC_PERIOD)] = durations.text(pace.min_sync_period)
    return with_leaves(file, found)


def _leaf(flag: Flag[object], given: Given) -> Leaf:
    # The type of the schema's field decides, because a flag's value may be an Address or an enum.
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
        # Empty is the default in a file, but means no address as a flag.
        text = str(value) if value is not None else "0"
    return value if isinstance(value, bool | int) else text
