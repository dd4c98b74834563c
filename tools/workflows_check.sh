#!/bin/sh
# Check the workflows with zizmor and, if PATH or .venv has it, actionlint. Needs no network.
set -eu
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH
zizmor --offline --no-progress --quiet .github
if command -v actionlint >/dev/null; then
    actionlint
elif [ -n "${GITHUB_ACTIONS:-}" ]; then
    echo "actionlint is missing" >&2
    exit 1
else
    echo "not checked by actionlint, which is missing" >&2
fi
# Renovate and Dependabot update the hash of an action and the version in its comment.
if grep -rnE '^ *(- )?uses: ' .github/workflows | grep -vE 'uses: (\./|[^@]+@[0-9a-f]{40} # v[0-9.]+$)'; then
    echo "actions are pinned by the hash of a commit, with the version in a comment" >&2
    exit 1
fi
