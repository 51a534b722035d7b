# NLOHMANN_JSON_INCLUDE: the folder that holds nlohmann/json.hpp.
set(NLOHMANN_JSON_ROOT "" CACHE PATH "folder that holds nlohmann/json.hpp, or its include folder")
find_path(NLOHMANN_JSON_INCLUDE nlohmann/json.hpp HINTS ${NLOHMANN_JSON_ROOT}
  PATH_SUFFIXES include single_include)
if(NOT NLOHMANN_JSON_INCLUDE)  # the wheel of PyPI's nlohmann-json
  foreach(python python3 python)
    execute_process(COMMAND ${python} -c
      "from importlib.util import find_spec as f; print(f('nlohmann_json').submodule_search_locations[0])"
      OUTPUT_VARIABLE wheel OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    find_path(NLOHMANN_JSON_INCLUDE nlohmann/json.hpp HINTS "${wheel}/include")
  endforeach()
endif()
if(NOT NLOHMANN_JSON_INCLUDE AND ARC_FETCH_JSON)
  include(FetchContent)
  FetchContent_Declare(json GIT_REPOSITORY https://github.com/nlohmann/json.git
    GIT_TAG 9cca280a4d0ccf0c08f47a99aa71d1b0e52f8d03)  # v3.11.3
  FetchContent_GetProperties(json)
  if(NOT json_POPULATED)
    FetchContent_Populate(json)
  endif()
  set(NLOHMANN_JSON_INCLUDE ${json_SOURCE_DIR}/single_include CACHE PATH "" FORCE)
endif()
if(NOT NLOHMANN_JSON_INCLUDE)
  message(FATAL_ERROR "nlohmann/json.hpp is not found: pip install nlohmann-json, or give "
    "-DNLOHMANN_JSON_ROOT=<folder> or -DARC_FETCH_JSON=ON")
endif()
