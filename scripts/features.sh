#!/usr/bin/env bash
# Prints the cargo flags of the features that this machine can build (MPI, if it is installed), one word per
# line.
if command -v mpicc >/dev/null && command -v mpirun >/dev/null && ls /usr/lib/llvm-*/lib/libclang.so* >/dev/null 2>&1; then
    printf '%s\n' --features autodist/mpi,autodist-communication/mpi
else
    echo "SKIPPED: nothing is built or tested over MPI: mpicc, mpirun or libclang is missing (libopenmpi-dev, openmpi-bin, libclang-dev)" >&2
fi
