"""Settings as a command line gives them, files of others, and configurations by their paths."""

from collections.abc import Mapping
from pathlib import Path

from pyproxy.config import Settings, command_line

DATA = Path(__file__).parents[1] / "data"
KUBEADM = DATA / "kubeadm-config.yaml"
DEFAULT = DATA / "kube-proxy-default-config.yaml"


def parse(*arguments: str) -> Settings:
    parser = command_line.Parser(allow_abbrev=False)
    command_line.add_flags(parser)
    return command_line.settings(parser.parse_args(list(command_line.go_style(arguments))))


def flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
