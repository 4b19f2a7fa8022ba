#!/usr/bin/env bash
# Installs the node's units, users, directories and host settings for one role, and enables them; it starts nothing.
# Idempotent. `holdfast.target` is what to start, and what a reboot starts.
# usage: install.sh ROLE [ROOT]   (ROOT: an image's root directory; default: the running system's)
set -euo pipefail
cd "$(dirname "$0")"

role=${1:?usage: install.sh ROLE [ROOT]}
root=${2:-}
case $role in
  scheduler | server | worker | predictor) ;;
  *)
    echo "units: the role must be scheduler, server, worker or predictor, got $role" >&2
    exit 64
    ;;
esac

system=$root/etc/systemd/system
install -d -m 0755 "$system" "$root/etc/sysusers.d" "$root/etc/tmpfiles.d"
install -m 0644 ./*.service ./*.path ./*.target "$system/"
# What the trainer's unit needs besides on this role; what another role left is removed.
trainer=$system/holdfast-trainer.service.d
install -d -m 0755 "$trainer"
rm -f "$trainer"/{10-role,20-gpu}.conf
if [ -e "$role.conf" ]; then
  install -m 0644 "$role.conf" "$trainer/10-role.conf"
fi
install -m 0644 sysusers.conf "$root/etc/sysusers.d/holdfast.conf"
install -m 0644 tmpfiles.conf "$root/etc/tmpfiles.d/holdfast.conf"

systemd-sysusers --root="$root/" holdfast.conf
systemd-tmpfiles --root="$root/" --create holdfast.conf
if [ -z "$root" ]; then
  systemctl daemon-reload
fi
systemctl --quiet ${root:+--root="$root"} enable holdfast.target holdfast-firewall.service
