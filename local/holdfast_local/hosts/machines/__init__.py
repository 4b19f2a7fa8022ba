"""Booted hosts: systemd as process 1, cloud-init on the EC2 datasource, in an image that this machine's own apt makes.

A machine is run by systemd-nspawn on the same fabric, with the same metadata service, as a host of processes. What
it does at boot is what its launch template's user data says, and nothing here knows what that is.
"""
