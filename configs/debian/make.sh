#!/bin/sh
# Packs programs that are built already, with what belongs to them, and prints the package's path:
#   configs/debian/make.sh PROFILE [REVISION]
# PROFILE is the folder of target/ that has the programs. cargo-deb is where CARGO_DEB says, or on the PATH. FAST=1 compresses less.
set -eu
cd "$(dirname "$0")/../.."
PROFILE=$1
REVISION=${2:-1}

NAME=resource-capsules
PROGRAMS=target/$PROFILE
# Where snapshotter/Cargo.toml looks for what is made here.
PARTS=.cache/debian
VERSION=$("$PROGRAMS/capsulectl" --version | cut -d' ' -f2)
# The same sources give the same package.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

rm -rf "$PARTS"
mkdir -p "$PARTS/man1" "$PARTS/man5" "$PARTS/man8" "$PARTS/completions"

"$PROGRAMS/capsulectl" man "$PARTS/man1"
for program in capsuled capsule-remote; do
	"$PROGRAMS/$program" --man >"$PARTS/man8/$program.8"
done
cp configs/debian/containerd-shim-capsule-v1.8 "$PARTS/man8/"

# The configuration is its own description: shown as it is.
{
	echo '.TH capsuled\-config 5 "" "Resource Capsules" "Resource Capsules"'
	echo '.SH NAME'
	echo 'capsuled\-config \- configuration of capsuled, /etc/capsule/config.toml'
	echo '.SH DESCRIPTION'
	echo '.nf'
	# Backslashes, then what would begin a request, then hyphens, which are to be copied.
	sed -e 's/\\/\\e/g' -e "s/^\([.']\)/\\\\\&\1/" -e 's/-/\\-/g' configs/config.toml
	echo '.fi'
	echo '.SH SEE ALSO'
	echo '.BR capsuled (8)'
} >"$PARTS/man5/capsuled-config.5"

# The page of the documentation without what its test alone reads, and its links; rows of tables are too wide for a terminal.
{
	echo '% capsule.toml 5 "" "Resource Capsules" "Resource Capsules"'
	echo '# NAME'
	echo 'capsule.toml, .capsuleignore - what a version of a capsule is, declared beside its tree'
	echo
	echo '# DESCRIPTION'
	sed -e 1d -e '/^<!-- prepare/,/^-->/d' -e '/^<!--.*-->$/d' -e 's/\[\([^]]*\)\]([^)]*)/\1/g' \
		-e '/^| *---/d' -e '/^| field /d' \
		-e 's/^| \(.*\) | \(.*\) | \(.*\) | \(.\+\) |$/- \1, \2: \3 (\4)/' -e 's/^| \(.*\) | \(.*\) | \(.*\) | *|$/- \1, \2: \3/' docs/capsule-toml.md
	echo
	echo '# SEE ALSO'
	echo 'capsulectl-build(1), capsulectl(1)'
} | go-md2man -in /dev/stdin | sed 's/\\fC/\\fB/g' |
	# It leaves alone what begins with a dot in an example.
	awk '/^\.(fi|EE)/ { shown = 0 } shown && /^\./ { printf "\\&" } /^\.(nf|EX)/ { shown = 1 } 1' >"$PARTS/man5/capsule.toml.5"

for shell in bash zsh fish; do
	"$PROGRAMS/capsulectl" completion "$shell" >"$PARTS/completions/$shell"
done

# What is linked into the programs, and under which licences.
cargo tree --locked --edges normal --prefix none --format '{p} {l}' \
	-p capsuled -p capsulectl -p containerd-shim-capsule-v1 -p capsule-remote |
	sed -e 's/ (\*)$//' -e 's/ (proc-macro)//' -e '/ (\//d' | sort -u >"$PARTS/libraries"

cat >"$PARTS/changelog" <<CHANGES
$NAME ($VERSION-$REVISION) unstable; urgency=medium

  * Release $VERSION: see /usr/share/doc/$NAME/changelog.gz.

 -- Resource Capsules <packages@resourcecapsules.io>  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
CHANGES

PATH=$PATH:/usr/sbin:/sbin
# Not in target/debian: it removes other revisions from there.
mkdir -p target/packages
FILE=target/packages/${NAME}_$VERSION-${REVISION}_$(dpkg --print-architecture).deb
"${CARGO_DEB:-cargo-deb}" deb --locked --no-build --profile "$PROFILE" --deb-revision "$REVISION" --compress-system \
	${FAST:+--fast} --output "$FILE" -p capsuled
