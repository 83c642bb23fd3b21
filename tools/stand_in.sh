# To be sourced: an image that tests need is the one that is here, else the public one, else (no way to its registry)
# a stand-in for it from Debian's packages. A stand-in is marked with the label `stand-in`, and made again when what it
# is made of changes; a public image is never touched.

# have_image IMAGE CONTENTS: whether nothing is to be made. CONTENTS: a digest of what a stand-in is made of.
have_image() {
  local label refusal
  docker info > /dev/null || exit 2 # says what is wrong with the engine
  if label=$(docker image inspect --format '{{index .Config.Labels "stand-in"}}' "$1" 2> /dev/null); then
    [[ $label == "$2" || -z $label ]] && return
  elif refusal=$(docker pull --quiet "$1" 2>&1 > /dev/null); then
    return
  else
    echo "$1 can't be pulled (${refusal##*: }): making a stand-in for it." >&2
  fi
  if ! command -v mmdebstrap > /dev/null || ! compgen -G '/usr/share/keyrings/debian-archive-keyring.*' > /dev/null; then
    echo "A stand-in for $1 is made with mmdebstrap: apt-get install mmdebstrap debian-archive-keyring" >&2
    exit 2
  fi
  return 1
}

# import_debian IMAGE CONTENTS SUITE PACKAGES HOOK [OPTION OF docker import]...
# Packages are unpacked, not installed: enough for an image that runs Python. HOOK finds the tree in $1.
import_debian() {
  local image=$1 contents=$2 suite=$3 packages=$4 hook=$5 mirror work
  shift 5
  # This machine's mirror of Debian, if it has one.
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 2> /dev/null | grep -m1 -E '/debian/?$' || true)
  work=$(mktemp -d)
  chmod 755 "$work" # mmdebstrap may write it as another user
  mmdebstrap --quiet --variant=extract --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --extract-hook="$hook" "$suite" "$work/image.tar" "${mirror:-https://deb.debian.org/debian}"
  docker import "$@" --change "LABEL stand-in=$contents" "$work/image.tar" "$image" > /dev/null
  rm -rf "$work"
  docker image inspect --format '{{index .RepoTags 0}}: {{.Size}} bytes' "$image"
}
