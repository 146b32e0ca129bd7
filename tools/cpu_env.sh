# Sourced by the Makefile and by the recipe's scripts: what makes the CPU quicker. GPUs do not care.

# The matrix library inside torch 1.13.1's wheel (MKL 2020.0) takes a slow path on processors that are not Intel's; this
# variable, which newer versions ignore, lets it use AVX2 all the same: twice the speed on an AMD EPYC.
if grep -qs AuthenticAMD /proc/cpuinfo && grep -qsw avx2 /proc/cpuinfo; then
  export MKL_DEBUG_CPU_TYPE=${MKL_DEBUG_CPU_TYPE:-5}
fi
