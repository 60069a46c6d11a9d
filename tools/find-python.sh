#!/bin/sh
# Prints a Python 3.11 or newer that can make virtual environments; PYTHON=… is tried first.
wanted='import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))'
for name in ${PYTHON:-} python3.11 python3.12 python3.13 python3.14 python3 python; do
    if command -v "$name" >/dev/null 2>&1 && "$name" -c "$wanted" >/dev/null 2>&1; then
        echo "$name"
        exit 0
    fi
done
{
    echo "error: no Python 3.11 or newer that can make virtual environments (module venv with ensurepip)"
    echo "hint: install one (Debian and Ubuntu: apt-get install python3.11 python3.11-venv), or name it: make PYTHON=/path/to/python3"
} >&2
exit 2
