#!/bin/sh
# Lists the Pythons of this machine that the library supports, one of each version, the one that `python3` means first:
#     3.12 /usr/bin/python3.12
# With a version as argument: the path of that one alone.
set -eu

# Newer ones wait for wheels of what tests/requirements.txt pins.  Previews have no wheels at all; a Python that cannot make
# virtual environments (Debian's without python3-venv) is of no use here.
probe='
import ensurepip, sys, venv
supported = (3, 11) <= sys.version_info < (3, 15) and sys.version_info.releaselevel == "final"
if supported and sys.implementation.name == "cpython" and sys.prefix == sys.base_prefix:
    print("{}.{} {}".format(*sys.version_info[:2], sys.executable))
'

list() {
    for python in python3 python3.11 python3.12 python3.13 python3.14 \
        "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/*/bin/python /usr/local/bin/python3.1[1-9] /usr/bin/python3.1[1-9]; do
        "$python" -c "$probe" 2>/dev/null || true
    done | awk '!seen[$1]++'
}

if [ $# -eq 0 ]; then list; else list | awk -v version="$1" '$1 == version { print $2 }'; fi
