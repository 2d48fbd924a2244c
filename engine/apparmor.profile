# What RuntimeDefault means for a container: no mounts, no way to the settings of
# the host's kernel; signals and tracing among containers only. Capabilities,
# devices and system calls are limited elsewhere.
profile podstead-default flags=(attach_disconnected, mediate_deleted) {
  file,
  network,
  unix,
  capability,
  umount,
  deny mount,

  # Whoever kills a container is not confined, or is in one.
  signal (receive) peer=unconfined,
  signal (send, receive) peer=podstead-default,
  ptrace (read, trace, readby, tracedby) peer=podstead-default,

  deny /proc/sys/** wkl,
  deny /proc/sysrq-trigger rwkl,
  deny /proc/{mem,kmem,kcore} rwkl,
  deny /proc/{acpi,bus,fs,irq}/** wkl,

  # All of /sys but cgroups.
  deny /sys/[^f]*/** wkl,
  deny /sys/f[^s]*/** wkl,
  deny /sys/fs/[^c]*/** wkl,
  deny /sys/fs/c[^g]*/** wkl,
  deny /sys/firmware/** rwkl,
  deny /sys/kernel/security/** rwkl,
}
