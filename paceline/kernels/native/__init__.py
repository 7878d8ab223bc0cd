"""Kernels in C++ that are bitwise row-invariant, behind checks that raise; nothing here is imported by models yet."""
