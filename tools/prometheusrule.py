"""Write the Prometheus operator's PrometheusRule from Prometheus' own rule file.

python tools/prometheusrule.py deploy/monitoring/alerts.yaml >deploy/monitoring/prometheusrule.yaml
"""

import sys
from pathlib import Path

HEADER = """\
# Generated from alerts.yaml by `make generate`: do not edit.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: pyproxy
spec:
"""


def generate(alerts: str) -> str:
    """Return the resource's text, with the rule file indented below `spec`."""
    lines = (f"  {line}" if line.strip() else line for line in alerts.splitlines(keepends=True))
    return HEADER + "".join(lines)


if __name__ == "__main__":
    sys.stdout.write(generate(Path(sys.argv[1]).read_text()))
