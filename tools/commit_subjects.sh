#!/bin/sh
# Check the subjects of the commits after BASE: `area: imperative`, at most 72 characters.
#
#   tools/commit_subjects.sh [BASE]
#
# Without BASE: all commits since the rule was made. A shallow clone has no BASE; its commits are
# then checked as far as they are there.
set -eu

rule_made=8f9cf21d3d839bf1fe7b39f6661aeda751afbcd7
base=${1:-$rule_made}
cd "$(dirname "$0")/.."
git rev-parse --git-dir >/dev/null 2>&1 || exit 0
range=HEAD
if git cat-file -e "$base^{commit}" 2>/dev/null; then range=$base..HEAD; fi

git log --no-merges --format='%h %s' "$range" | awk '
    {
        subject = substr($0, index($0, " ") + 1)
        if (length(subject) > 72) why = "is longer than 72 characters"
        else if (subject !~ /^[a-z0-9][a-z0-9_.\/-]*: [^ A-Z]/) why = "is not `area: imperative`"
        else next
        printf "commit %s: the subject %s: %s\n", $1, why, subject
        bad = 1
    }
    END { exit bad }' >&2
