"""The results of a check as a JUnit report, which CI systems read."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from pyproxy.kubectl.check.matrix import FAILED, NONE, CheckReport, Finding


def junit(found: CheckReport) -> bytes:
    """Return the report: a test suite with a case for each cell of the matrix."""
    failures: dict[tuple[str, str, str], list[Finding]] = {}
    for each in found.failures:
        failures.setdefault((each.test, each.source, each.node), []).append(each)
    suite = ET.Element("testsuite", name="kubectl pyproxy check")
    tests = failed = 0
    for row in found.rows:
        for node, result in row.results.items():
            if result == NONE:
                continue
            tests += 1
            name = f"{row.test} from {row.source}" if row.source else row.test
            case = ET.SubElement(suite, "testcase", name=_clean(name), classname=_clean(node))
            if result == FAILED:
                failed += 1
                findings = failures.get((row.test, row.source, node), [])
                message = "; ".join(each.problem for each in findings)
                failure = ET.SubElement(case, "failure", message=_clean(message))
                failure.text = _clean("\n".join(map(_details, findings)))
    for name, reason in found.skipped.items():
        case = ET.SubElement(suite, "testcase", name=_clean(name), classname="cluster")
        ET.SubElement(case, "skipped", message=_clean(reason))
    suite.set("tests", str(tests + len(found.skipped)))
    suite.set("failures", str(failed))
    suite.set("skipped", str(len(found.skipped)))
    ET.indent(suite)
    text = ET.tostring(suite, encoding="unicode", xml_declaration=True)
    return f"{text}\n".encode()


def _details(each: Finding) -> str:
    to = f" to {', '.join(each.destinations)}" if each.destinations else ""
    return f"{each.node}{to}: {each.problem}" + (f"\nnext: {each.next}" if each.next else "")


def _clean(text: str) -> str:
    """Replace characters that XML cannot have."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
