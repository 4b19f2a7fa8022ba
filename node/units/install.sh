#!/usr/bin/env bash
# Installs the node's units, users, directories and host settings for one role, and enables them. It starts nothing;
# what is a way into the host ends. Idempotent. `holdfast.target` is what to start, and what a reboot starts.
# usage: install.sh ROLE [ROOT]   (ROOT: an image's root directory; default: the running system's)
# A failure is said on lines `cause: ...` and `remedy: ...`.
set -euo pipefail
umask 022
cd "$(dirname "$0")"

role=${1:?usage: install.sh ROLE [ROOT]}
root=${2:-}
system=$root/etc/systemd/system
trainer=$system/holdfast-trainer.service.d
# Names that an image does not have are masked too: an update could bring them.
shells=(sshd.service sshd.socket ssh.service ssh.socket ec2-instance-connect.service serial-getty@ttyS0.service)
session_manager=(amazon-ssm-agent.service)

die() {
  printf 'cause: %s\nremedy: %s\n' "$1" "$2"
  exit 1
}

on_system() { systemctl --quiet ${root:+--root="$root"} "$@"; }

# By the hardware, not by the driver: where it is missing the gate must say so, and not train on the CPU.
has_nvidia() {
  local device
  for device in "$root"/sys/bus/pci/devices/*; do
    # PCI: vendor 0x10de is NVIDIA, class 0x03xxxx a display controller (0x0302 is a GPU without displays).
    if [ "$(cat "$device/vendor" 2> /dev/null)" = 0x10de ] && [[ $(cat "$device/class" 2> /dev/null) == 0x03* ]]; then
      return 0
    fi
  done
  return 1
}

allows_sessions() {
  local config=$root/etc/holdfast/node.json
  [ -f "$config" ] || return 1 # an image, before it is a node
  python3 -c 'import json, sys; sys.exit(json.load(open(sys.argv[1])).get("remote_access") != "session-manager")' "$config"
}

close_service() {
  local said
  # A unit file in /etc itself cannot be masked; it is disabled then.
  said=$(on_system mask "$1" 2>&1) || said=$(on_system disable "$1" 2>&1) ||
    die "the service $1 cannot be closed: ${said##*$'\n'}" 'use an image without it'
  if [ -z "$root" ]; then
    systemctl stop "$1" 2> /dev/null || ! systemctl --quiet is-active "$1" ||
      die "the service $1 does not end" 'use an image without it'
  fi
}

case $role in
  scheduler | server | worker | predictor) ;;
  *) die "the role must be scheduler, server, worker or predictor, got $role" 'deploy again' ;;
esac

install -d -m 0755 "$system" "$trainer" "$root/etc/sysusers.d" "$root/etc/tmpfiles.d"
install -m 0644 holdfast* "$system/"
# What the trainer's unit needs besides on this role; what another role left is removed.
rm -f "$trainer"/{10-role,20-gpu}.conf "$system/holdfast-gpu.service"
if [ -e "$role.conf" ]; then
  install -m 0644 "$role.conf" "$trainer/10-role.conf"
fi
if has_nvidia; then
  install -m 0644 gpu.conf "$trainer/20-gpu.conf"
  install -m 0644 gpu.service "$system/holdfast-gpu.service"
fi
install -m 0644 sysusers.conf "$root/etc/sysusers.d/holdfast.conf"
install -m 0644 tmpfiles.conf "$root/etc/tmpfiles.d/holdfast.conf"
# The host's own settings: a tree of what lies below the root directory.
cp -R --no-preserve=all ../host/etc/. "$root/etc/"
if [ -d "$root/etc/chrony" ]; then # where Debian's chrony looks
  install -m 0644 ../host/etc/chrony.conf "$root/etc/chrony/chrony.conf"
fi

systemd-sysusers --root="$root/" holdfast.conf
systemd-tmpfiles --root="$root/" --create holdfast.conf
if [ -z "$root" ]; then
  systemctl daemon-reload
  systemctl restart systemd-sysctl.service ||
    die 'the kernel refuses a setting of /etc/sysctl.d/60-holdfast.conf; the journal names it' 'use an image of Amazon Linux 2023'
  for clock in chronyd.service chrony.service systemd-timesyncd.service; do
    systemctl try-restart "$clock" 2> /dev/null || true # an image has one of them
  done
fi
for service in "${shells[@]}"; do
  close_service "$service"
done
if allows_sessions; then
  on_system unmask "${session_manager[@]}"
  install -m 0644 sessions.conf "$root/etc/sysusers.d/holdfast-sessions.conf"
  systemd-sysusers --root="$root/" holdfast-sessions.conf
else
  rm -f "$root/etc/sysusers.d/holdfast-sessions.conf"
  for service in "${session_manager[@]}"; do
    close_service "$service"
  done
fi
on_system enable holdfast.target holdfast-firewall.service
