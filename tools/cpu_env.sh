# Sourced by the Makefile and by the recipe's scripts: what makes the CPU quicker. GPUs do not care.

# The matrix library inside torch 1.13.1's wheel (MKL 2020.0) takes a slow path on processors that are not Intel's; this
# variable, which newer versions ignore, lets it use AVX2 all the same: twice the speed on an AMD EPYC.
if grep -qs AuthenticAMD /proc/cpuinfo && grep -qsw avx2 /proc/cpuinfo; then
  export MKL_DEBUG_CPU_TYPE=${MKL_DEBUG_CPU_TYPE:-5}
fi

# Keep freed memory for the next tensors. Returned to the system and fetched anew, as glibc does with large pieces, every
# page is a fault: a training step took ten times as long on a virtual machine whose host takes free pages back.
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-4000000000}
