// This file has no code: its presence lets a function be declared without a
// body, which the linker finds in package syscall.
