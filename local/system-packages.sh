#!/usr/bin/env bash
# Makes sure that the system tools of the local cluster are here: installs them with apt where that is allowed,
# otherwise says exactly what to install and stops.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

declare -A package=(
  [stunnel]=stunnel4 [nft]=nftables [ip]=iproute2 [unshare]=util-linux [setpriv]=util-linux [nsenter]=util-linux
  [node]=nodejs [npm]=npm [openssl]=openssl
)

# Installed where root and apt allow; without them less is shown and checked here, and what is not is said.
declare -A optional=(
  [newuidmap]=uidmap [shellcheck]=shellcheck [systemd-nspawn]=systemd-container [mmdebstrap]=mmdebstrap
  [dbus-daemon]=dbus
)

missing() {
  local tool
  for tool in "${!package[@]}"; do
    command -v "$tool" >/dev/null || echo "${package[$tool]}"
  done
  # MXNet's wheel links these two and does not carry them.
  ldconfig -p | grep -q libquadmath.so.0 || echo libquadmath0
  ldconfig -p | grep -q libgomp.so.1 || echo libgomp1
}

fail() {
  echo "error: $1" >&2
  exit 1
}

absent() {
  local tool
  for tool in "${!optional[@]}"; do
    command -v "$tool" >/dev/null || echo "${optional[$tool]}"
  done
}

apt_install() {
  echo "==> installing system packages: $*"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

may_install() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null
}

# mapfile, not a pipeline into a loop: `fail` must end this shell.
mapfile -t packages < <(missing | sort -u)
if ((${#packages[@]})); then
  if may_install; then
    mapfile -t extra < <(absent | sort -u)
    apt_install "${packages[@]}" "${extra[@]}"
  elif command -v apt-get >/dev/null; then
    fail "system packages are missing; run: sudo apt-get install ${packages[*]}"
  else
    fail "system packages are missing; install what your system calls (Debian's names): ${packages[*]}"
  fi
  mapfile -t packages < <(missing | sort -u)
  ((${#packages[@]} == 0)) || fail "still missing after the installation: ${packages[*]}"
elif may_install; then
  mapfile -t extra < <(absent | sort -u)
  ((${#extra[@]} == 0)) || apt_install "${extra[@]}" || echo "warning: could not install ${extra[*]}" >&2
fi

python=${1:-python3}
command -v "$python" >/dev/null || fail "Python 3.11 was not found; install python3.11 and its venv module"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$version" = 3.11 ] || fail "Python must be 3.11 (Apache MXNet 1.9.1 needs numpy < 1.24, which has no newer wheels), got $version; install python3.11 and run: make PYTHON=python3.11 setup"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "Python's venv module is missing; run: sudo apt-get install python3.11-venv"
major=$(node --version | sed 's/^v\([0-9]*\).*/\1/')
[ "$major" -ge 18 ] || fail "Node.js must be 18 or newer (the AWS CDK's command line needs it), got $(node --version)"
