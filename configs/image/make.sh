#!/bin/sh
# Makes the image for Kubernetes nodes of the programs in a folder, which have to be linked statically:
#   make.sh PROGRAMS OUT
# As an OCI archive, OUT/resource-capsules.tar, of the version that they say. Needs buildah, and no daemon; nothing of it stays.
set -eu

programs=$1 out=$2
version=$("$programs/capsulectl" --version | cut -d' ' -f2)
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

# $1 to the directory $2, if it needs nothing else.
static() {
	if readelf -l "$1" | grep -q INTERP; then
		echo "$1 is not linked statically" >&2
		exit 1
	fi
	cp "$1" "$2"
}
mkdir -p "$work/context/bin" "$out"
for program in capsuled capsulectl containerd-shim-capsule-v1 capsule-remote capsule-controller; do
	static "$programs/$program" "$work/context/bin/"
done
cp "$here/node-install" "$work/context/"

# This machine's busybox, which is static, and mkfs.ext4 with the libraries that it needs, for what attachments write under names.
root=$work/context/root
mkdir -p "$root/bin" "$root/etc" "$root/usr/sbin" "$root/usr/share/doc/resource-capsules"
static /usr/bin/busybox "$root/bin/"
PATH=$PATH:/usr/sbin:/sbin
mkfs=$(command -v mkfs.ext4)
cp -L "$mkfs" "$root/usr/sbin/mkfs.ext4"
cp /etc/mke2fs.conf "$root/etc/"
ldd "$mkfs" | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) .*/\1/p' | while read -r library; do
	mkdir -p "$root$(dirname "$library")"
	cp -L "$library" "$root$library"
done
cp "$here/../../LICENSE" "$root/usr/share/doc/resource-capsules/copyright"
for package in busybox-static e2fsprogs libblkid1 libc6 libcom-err2 libext2fs2 libuuid1; do
	if [ -e "/usr/share/doc/$package/copyright" ]; then
		mkdir -p "$root/usr/share/doc/$package"
		cp -L "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package/"
	fi
done

store() {
	buildah --root "$work/root" --runroot "$work/run" --storage-driver vfs "$@"
}
# The same programs make the same image.
store bud --quiet --isolation chroot --timestamp 0 --file "$here/Dockerfile" --tag "resource-capsules:$version" "$work/context" >/dev/null
rm -f "$out/resource-capsules.tar"
store push --quiet "resource-capsules:$version" "oci-archive:$out/resource-capsules.tar:docker.io/library/resource-capsules:$version"
echo "$out/resource-capsules.tar: resource-capsules:$version, $(du -h "$out/resource-capsules.tar" | cut -f1)"
