# arcompile.runtime._native, the loop for Python (ARC_RUNTIME=native).
find_package(Python 3.11 REQUIRED COMPONENTS Interpreter Development.Module)
execute_process(COMMAND ${Python_EXECUTABLE} -m nanobind --cmake_dir
  OUTPUT_VARIABLE nanobind_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE)
find_package(nanobind CONFIG REQUIRED)

nanobind_add_module(_native NB_STATIC src/python_module.cpp)
target_link_libraries(_native PRIVATE static)
install(TARGETS _native LIBRARY DESTINATION arcompile/runtime COMPONENT python)
