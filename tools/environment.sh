# Sourced by tools/demo and tools/test: makes .venv once and puts it first on PATH.
# Needs only Python 3.11 or newer with pip. A finished installation is marked with the hash of what it was made from,
# so that an interrupted or outdated one is completed instead of used.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"

python=""
for candidate in python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null 2>&1 &&
        "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
        python="$candidate"
        break
    fi
done
if [ -z "$python" ]; then
    echo "onebeat needs Python 3.11 to 3.13 with pip; none was found on PATH." >&2
    exit 2
fi

wanted="$(cat pyproject.toml constraints.txt | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')"
if [ ! -f .venv/complete ] || [ "$(cat .venv/complete)" != "$wanted" ]; then
    echo "Installing onebeat into .venv (once; a few minutes) ..." >&2
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' >&2
    echo "$wanted" >.venv/complete
fi
export PATH="$root/.venv/bin:$PATH"
