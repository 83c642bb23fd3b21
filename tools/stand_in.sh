# To be sourced. Tests use the local image if there is one, otherwise the public image, otherwise (if its registry cannot
# be reached) a stand-in built from Debian packages. A stand-in has the label `stand-in` and is rebuilt when its inputs
# change. A public image is never replaced.

# have_image IMAGE CONTENTS: succeeds if no build is needed. CONTENTS: a digest of the stand-in's inputs.
have_image() {
  local label refusal
  docker info > /dev/null || exit 2 # docker's message says what is wrong
  if label=$(docker image inspect --format '{{index .Config.Labels "stand-in"}}' "$1" 2> /dev/null); then
    [[ $label == "$2" || -z $label ]] && return
  elif refusal=$(docker pull --quiet "$1" 2>&1 > /dev/null); then
    return
  else
    echo "$1 cannot be pulled (${refusal##*: }): building a stand-in." >&2
  fi
  if ! command -v mmdebstrap > /dev/null || ! compgen -G '/usr/share/keyrings/debian-archive-keyring.*' > /dev/null; then
    echo "Building a stand-in for $1 requires mmdebstrap: apt-get install mmdebstrap debian-archive-keyring" >&2
    exit 2
  fi
  return 1
}

# import_debian IMAGE CONTENTS SUITE PACKAGES HOOK [OPTION OF docker import]...
# Packages are unpacked, not installed, which is enough to run Python. HOOK receives the root folder as $1.
import_debian() {
  local image=$1 contents=$2 suite=$3 packages=$4 hook=$5 mirror work
  shift 5
  # This machine's Debian mirror, if one is configured.
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 2> /dev/null | grep -m1 -E '/debian/?$' || true)
  work=$(mktemp -d)
  chmod 755 "$work" # mmdebstrap can write as another user
  mmdebstrap --quiet --variant=extract --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --extract-hook="$hook" "$suite" "$work/image.tar" "${mirror:-https://deb.debian.org/debian}"
  docker import "$@" --change "LABEL stand-in=$contents" "$work/image.tar" "$image" > /dev/null
  rm -rf "$work"
  docker image inspect --format '{{index .RepoTags 0}}: {{.Size}} bytes' "$image"
}
