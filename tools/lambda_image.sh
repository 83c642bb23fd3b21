#!/usr/bin/env bash
# Provides the base image of `sam local`, public.ecr.aws/lambda/python:3.13-<architecture>, or a stand-in (stand_in.sh)
# with the same runtime client and boto3 as on AWS.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/stand_in.sh

version=3.13 # the Python version of the functions' runtime in template.yaml
suite=trixie # the Debian release with this Python version
pins=requirements/lambda.txt

case $(uname -m) in
  x86_64) architecture=x86_64 ;;
  aarch64) architecture=arm64 ;;
  *) echo "Lambda does not support $(uname -m) processors." >&2; exit 2 ;;
esac
image=public.ecr.aws/lambda/python:$version-$architecture
contents=$(cat tools/lambda_image.sh tools/stand_in.sh "$pins" | sha256sum | cut -c1-12)
if have_image "$image" "$contents"; then exit 0; fi

python=.local/venvs/lambda/bin/python
if [[ ! -x $python ]]; then
  echo "Python $version is not installed in .local: run make up or make test first." >&2
  exit 2
fi

runtime=$(mktemp -d)
trap 'rm -rf "$runtime"' EXIT
chmod 755 "$runtime" # mmdebstrap can read as another user

# As in the managed runtime, the function's own packages override these.
"$python" -m pip install --quiet --disable-pip-version-check --no-input --root-user-action=ignore \
  --require-hashes --no-deps --only-binary=:all: --target "$runtime" -r "$pins"
cat > "$runtime/bootstrap" << BOOTSTRAP
#!/bin/sh
export PYTHONPATH="\${PYTHONPATH:+\$PYTHONPATH:}/opt/python/lib/python$version/site-packages:/opt/python:/var/runtime"
exec /usr/bin/python$version -m awslambdaric "\$_HANDLER"
BOOTSTRAP
chmod 755 "$runtime/bootstrap"

docker image rm --force "${image%:*}:$version-rapid-$architecture" > /dev/null 2>&1 || true # SAM's image on top of the old one
# dash and coreutils: SAM's Dockerfile runs mv and chmod in a shell. libstdc++6: without it, awslambdaric's extension
# module fails silently.
import_debian "$image" "$contents" "$suite" \
  "python$version-minimal,libpython$version-stdlib,libstdc++6,base-files,coreutils,dash" \
  "mkdir -p \"\$1/var/task\" && cp -R '$runtime' \"\$1/var/runtime\"" \
  --change 'WORKDIR /var/task' --change 'ENV PATH=/usr/bin LANG=C.UTF-8 TZ=:UTC'
