/* bcc asks for these; no program here depends on a kernel's version. */
#ifndef SHMTRACE_STUB_VERSION_H
#define SHMTRACE_STUB_VERSION_H
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 10, 0)
#endif
