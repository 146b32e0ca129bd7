# Describes the installed torch to kaldifeat's build. Torch's TorchConfig.cmake requires the CUDA toolkit of the version that
# torch was built with, although kaldifeat compiles no CUDA code and runs on CUDA tensors through torch itself.
# Expects -DTORCH_DIR=<the folder of the torch package>.
if(NOT TORCH_DIR)
  message(FATAL_ERROR "TORCH_DIR is not set: pass -DTORCH_DIR=<folder of the torch package>")
endif()

set(TORCH_INCLUDE_DIRS "${TORCH_DIR}/include" "${TORCH_DIR}/include/torch/csrc/api/include")
set(TORCH_CXX_FLAGS "-D_GLIBCXX_USE_CXX11_ABI=${TORCH_CXX11_ABI}")

foreach(library c10 torch_cpu torch)
  if(NOT TARGET ${library})
    add_library(${library} SHARED IMPORTED GLOBAL)
    set_target_properties(${library} PROPERTIES
      IMPORTED_LOCATION "${TORCH_DIR}/lib/lib${library}.so"
      INTERFACE_INCLUDE_DIRECTORIES "${TORCH_INCLUDE_DIRS}")
  endif()
endforeach()
target_link_libraries(torch_cpu INTERFACE c10)
target_link_libraries(torch INTERFACE torch_cpu c10)

set(TORCH_LIBRARIES torch torch_cpu c10)
set(TORCH_FOUND TRUE)
set(Torch_FOUND TRUE)

# kaldifeat's shared build does not find its own core library at run time.
set(BUILD_SHARED_LIBS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
