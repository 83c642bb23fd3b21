#!/usr/bin/env bash
# The base image of `sam local`, public.ecr.aws/lambda/python:3.13-<architecture>: the one that is here, else the public
# one, else (no way to that registry) a stand-in for it from Debian's packages, with the runtime client and boto3 that
# the functions meet on AWS. A stand-in is marked with the label `stand-in`, and made again when what it is made of
# changes; a public image is never touched.
set -euo pipefail
cd "$(dirname "$0")/../.."

version=3.13 # of Python: the functions' runtime in template.yaml
suite=trixie # the Debian release that has it
pins=requirements/lambda.txt

case $(uname -m) in
  x86_64) architecture=x86_64 ;;
  aarch64) architecture=arm64 ;;
  *) echo "Lambda has no runtime for $(uname -m) processors." >&2; exit 2 ;;
esac
image=public.ecr.aws/lambda/python:$version-$architecture
contents=$(cat "$0" "$pins" | sha256sum | cut -c1-12)

docker info > /dev/null # says what is wrong with the engine, if something is
if label=$(docker image inspect --format '{{index .Config.Labels "stand-in"}}' "$image" 2> /dev/null); then
  if [[ $label == "$contents" || -z $label ]]; then exit 0; fi
elif refusal=$(docker pull --quiet "$image" 2>&1 > /dev/null); then
  exit 0
else
  echo "$image can't be pulled (${refusal##*: }): making a stand-in for it." >&2
fi

python=.local/venvs/lambda/bin/python
if [[ ! -x $python ]]; then
  echo "Python $version is not set up here: run make up, or make test, first." >&2
  exit 2
fi
if ! command -v mmdebstrap > /dev/null || ! compgen -G '/usr/share/keyrings/debian-archive-keyring.*' > /dev/null; then
  echo "A stand-in for $image is made with mmdebstrap: apt-get install mmdebstrap debian-archive-keyring" >&2
  exit 2
fi
# This machine's mirror of Debian, if it has one.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 2> /dev/null | grep -m1 -E '/debian/?$' || true)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # mmdebstrap may read it as another user

# As in the managed runtime: below the function's own packages in the search order.
"$python" -m pip install --quiet --disable-pip-version-check --no-input --root-user-action=ignore \
  --require-hashes --no-deps --only-binary=:all: --target "$work/runtime" -r "$pins"
cat > "$work/runtime/bootstrap" << BOOTSTRAP
#!/bin/sh
export PYTHONPATH="\${PYTHONPATH:+\$PYTHONPATH:}/opt/python/lib/python$version/site-packages:/opt/python:/var/runtime"
exec /usr/bin/python$version -m awslambdaric "\$_HANDLER"
BOOTSTRAP
chmod 755 "$work/runtime/bootstrap"

# Unpacked, not installed: enough for an image that runs Python, a shell, and the mv and chmod of SAM's own Dockerfile.
# awslambdaric's extension module needs libstdc++6, and fails without a word where it is missing.
mmdebstrap --quiet --variant=extract \
  --include="python$version-minimal,libpython$version-stdlib,libstdc++6,base-files,coreutils,dash" \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --extract-hook="mkdir -p \"\$1/var/task\" && cp -R '$work/runtime' \"\$1/var/runtime\"" \
  "$suite" "$work/image.tar" "${mirror:-https://deb.debian.org/debian}"

docker image rm --force "${image%:*}:$version-rapid-$architecture" > /dev/null 2>&1 || true # SAM's layer on the old one
docker import --change 'WORKDIR /var/task' --change 'ENV PATH=/usr/bin LANG=C.UTF-8 TZ=:UTC' \
  --change "LABEL stand-in=$contents" "$work/image.tar" "$image" > /dev/null
docker image inspect --format '{{index .RepoTags 0}}: {{.Size}} bytes' "$image"
