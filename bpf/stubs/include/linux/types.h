/* The integer types that bcc's own headers use. */
#ifndef SHMTRACE_STUB_TYPES_H
#define SHMTRACE_STUB_TYPES_H
typedef unsigned char u8, __u8, uint8_t;
typedef signed char s8, __s8, int8_t;
typedef unsigned short u16, __u16, __be16, __le16, __sum16, uint16_t;
typedef short s16, __s16, int16_t;
typedef unsigned int u32, __u32, __be32, __le32, __wsum, uint32_t;
typedef int s32, __s32, int32_t;
typedef unsigned long long u64, __u64, __be64, __le64, __aligned_u64;
typedef long long s64, __s64;
typedef unsigned long size_t, uintptr_t, uint64_t;
typedef long ssize_t, int64_t;
typedef int pid_t;
typedef _Bool bool;
#define NULL ((void *)0)
#define true 1
#define false 0
#endif
