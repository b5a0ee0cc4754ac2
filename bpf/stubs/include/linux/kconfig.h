/* bcc includes this before everything else; the real one would pull in the kernel's whole configuration. */
#ifndef SHMTRACE_STUB_KCONFIG_H
#define SHMTRACE_STUB_KCONFIG_H
#define CONFIG_BPF_SYSCALL 1
#endif
