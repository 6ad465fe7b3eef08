#!/bin/sh
# Makes a stand-in for docker.io/library/python:3.11-slim out of Debian packages, where no registry is reached.
#
#   sudo deploy/container/base.sh [NAME]
#
# Debian 12 has Python 3.11. Needs root, debootstrap and buildah. MIRROR names another Debian mirror.
set -eu

name=${1:-docker.io/library/python:3.11-slim}
mirror=${MIRROR:-http://deb.debian.org/debian}

fail() {
	echo "base.sh: $1" >&2
	exit 1
}

[ "$(id -u)" = 0 ] || fail "debootstrap needs root: sudo $0"
for tool in debootstrap buildah; do
	command -v "$tool" >/dev/null || fail "$tool is not installed: apt-get install debootstrap buildah"
done

work=$(mktemp -d)
container=
tidy() {
	[ -z "$container" ] || buildah rm "$container" >/dev/null
	rm -rf "$work"
}
trap tidy EXIT
trap 'exit 1' INT TERM

debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$work/root" "$mirror" \
	>"$work/log" 2>&1 || fail "debootstrap failed: $(tail -n 1 "$work/log")"
# What no program reads: the official slim images leave it out too.
rm -rf "$work"/root/var/cache/apt/* "$work"/root/var/lib/apt/lists/* "$work"/root/var/log/* \
	"$work"/root/usr/share/doc-base "$work"/root/usr/share/man/* "$work"/root/usr/share/locale/*
find "$work/root/usr/share/doc" -type f ! -name copyright -delete
# The official image lets pip install where Debian would not.
rm -f "$work"/root/usr/lib/python3.*/EXTERNALLY-MANAGED
ln -sf python3 "$work/root/usr/bin/python"

container=$(buildah from scratch)
buildah add --quiet "$container" "$work/root" / >/dev/null
buildah config --cmd python3 --label org.opencontainers.image.title="stand-in for $name, from Debian packages" "$container"
buildah commit --quiet "$container" "$name" >/dev/null
echo "$name: $(du -sm "$work/root" | cut -f1) MB, from $mirror" >&2
