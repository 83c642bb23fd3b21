#!/usr/bin/env bash
# Provides the base image of endpoint/Dockerfile, or a stand-in (stand_in.sh) with the same Python and Debian release.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/stand_in.sh

pinned=$(sed -n 's/^ARG BASE=//p' endpoint/Dockerfile)
if docker image inspect "$pinned" > /dev/null 2>&1 || docker pull --quiet "$pinned" > /dev/null 2>&1; then exit 0; fi
image=${pinned%@*} # a stand-in has a tag and no digest
version=$(sed -E 's/.*:([0-9]+\.[0-9]+).*/\1/' <<< "$image")
suite=${image##*-}
contents=$(cat tools/python_image.sh tools/stand_in.sh | sha256sum | cut -c1-12)
if have_image "$image" "$contents"; then exit 0; fi

# Replaces the packages' installation scripts where the Dockerfile needs them: `python` on PATH, certificates for pip.
hook="cd \"\$1\" && mkdir -p usr/local/bin etc/ssl/certs && ln -s /usr/bin/python$version usr/local/bin/python"
hook="$hook && cat usr/share/ca-certificates/mozilla/*.crt > etc/ssl/certs/ca-certificates.crt"
import_debian "$image" "$contents" "$suite" \
  "python$version,python$version-venv,ca-certificates,libstdc++6,base-files,coreutils,dash" "$hook" \
  --change 'ENV PATH=/usr/local/bin:/usr/bin LANG=C.UTF-8'
