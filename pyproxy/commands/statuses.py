"""Exit statuses that all commands which ask have in common."""

UNANSWERED = 3
"""Agent, API or kernel did not answer: neither 0 nor 1, which are answers."""

ALWAYS = (
    "2 what was asked cannot be, or may not be asked",
    f"{UNANSWERED} agent, API or kernel did not answer",
    "130 ended by Ctrl-C",
)
"""What --help says of them."""
