# A Debian that boots, for installing the package as a user would.
ARG BASE=debian:bookworm-slim
FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends systemd systemd-sysv dbus curl procps debconf-utils \
 && rm -rf /var/lib/apt/lists/* /usr/sbin/policy-rc.d \
 && systemctl mask systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket getty.target \
        console-getty.service systemd-logind.service systemd-networkd.service \
 && systemctl set-default multi-user.target
ENV container=docker
STOPSIGNAL SIGRTMIN+3
LABEL org.myelin.standin=1
CMD ["/sbin/init"]
