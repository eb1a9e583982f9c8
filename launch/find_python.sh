#!/bin/sh
# Prints the newest Python that JAX and this package support (3.11 to 3.13) and that can create a
# virtual environment, from PATH or the folders of pyenv and uv. Prints nothing if there is none.
suitable='import sys, venv, ensurepip, ssl; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'
for version in ${VERSIONS:-3.13 3.12 3.11}; do
    for candidate in "python$version" \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version"*/bin/python3 \
        "$HOME"/.local/share/uv/python/cpython-"$version"*/bin/python3 \
        python3; do
        path=$(command -v "$candidate" 2>/dev/null) || continue
        found=$("$path" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
        if [ "$found" = "$version" ] && "$path" -c "$suitable" 2>/dev/null; then
            echo "$path"
            exit 0
        fi
    done
done
