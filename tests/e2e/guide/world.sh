#!/usr/bin/env bash
# A root of the test's own: this host's files under a layer that is thrown away, without anything of billing-daemon, and without a
# running systemd, so that `systemctl` changes files alone. Runs `guide.sh` of the shared folder in it.
#
#   unshare --mount --pid --fork --kill-child bash world.sh SHARED
set -euo pipefail
shared=$1

mount --make-rprivate /
mkdir "$shared/layer"
mount -t tmpfs tmpfs "$shared/layer"
mkdir "$shared/layer/upper" "$shared/layer/work" "$shared/layer/root"
root=$shared/layer/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$shared/layer/upper,workdir=$shared/layer/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
for folder in tmp run; do mount -t tmpfs -o mode=755 tmpfs "$root/$folder"; done
chmod 1777 "$root/tmp"
mkdir -p "$root/mnt" "$root/run/systemd/system"
mount --bind "$shared" "$root/mnt"
rm -rf "$root"/etc/billing-daemon "$root"/var/lib/billing-daemon "$root"/{usr/,usr/local/,}bin/billing-daemon \
    "$root"/{etc,usr/lib,lib}/systemd/system/*billing* "$root"/{etc,usr/lib}/{sysusers,tmpfiles}.d/billing-daemon.conf

# Root in here is sudo's user already. Like sudo, this passes no variables on but those on its own command line.
cat >"$root/usr/local/bin/sudo" <<'SUDO'
#!/bin/sh
user=root
if [ "$1" = -u ]; then user=$2; shift 2; fi
exec runuser -u "$user" -- env -i PATH="$PATH" SUDO_USER=ada "$@"
SUDO
# An operator who changes nothing; the file must be there.
printf '#!/bin/sh\nexec test -w "$1"\n' >"$root/usr/local/bin/sudoedit"
chmod 755 "$root/usr/local/bin/sudo" "$root/usr/local/bin/sudoedit"

# The first process of these namespaces stays outside of the root, by which systemctl sees that it is in one.
chroot "$root" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root USER=root \
    bash -euo pipefail -x /mnt/guide.sh
