"""C++ kernels for the CPU behind a plain C interface; each module wraps one of them and checks what it is given."""
