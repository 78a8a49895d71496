# Settings of the C library for training and testing on CPUs, read by tool/train.sh, tool/test.sh and
# the Makefile. What you have set yourself counts. Programs started as `python -m stripseg.tool...` do
# not read this: set the same variables there (docs/performance.md says what they bring).

# glibc's allocator keeps freed memory for the next tensor instead of returning it to the system
case "${GLIBC_TUNABLES:-}" in
*glibc.malloc*) ;;
*)
    if [ -z "${MALLOC_TRIM_THRESHOLD_:-}${MALLOC_MMAP_THRESHOLD_:-}${MALLOC_MMAP_MAX_:-}" ]; then
        export MALLOC_TRIM_THRESHOLD_=4611686018427387904 MALLOC_MMAP_THRESHOLD_=1073741824
    fi
    ;;
esac

# OpenMP's threads sleep soon when they wait for each other: the default, active waiting, makes a step
# several times slower where other programs want the same cores
if [ -z "${GOMP_SPINCOUNT:-}${OMP_WAIT_POLICY:-}" ]; then
    export GOMP_SPINCOUNT=1000
fi
