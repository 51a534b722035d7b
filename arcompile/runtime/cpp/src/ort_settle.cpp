// Making a session touches more of a process's memory than running it: models are read and rewritten
// in the heap, by code that is not run again.
#include "ort_library.hpp"

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#if defined(__linux__)
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace arc::ort {

#if defined(__linux__)
namespace {

bool holds(const dl_phdr_info& file, std::uintptr_t address) {
  for (int i = 0; i < file.dlpi_phnum; ++i) {
    const auto& part = file.dlpi_phdr[i];
    const bool inside = address - (file.dlpi_addr + part.p_vaddr) < part.p_memsz;
    if (part.p_type == PT_LOAD && inside) return true;
  }
  return false;
}

// Pages that nothing may write to are the file's own: they leave this process, and come back from
// the system's cache when they are touched. (So do a debugger's breakpoints leave; it sets them anew
// when the process stops.)
int leave(dl_phdr_info* file, std::size_t, void* address) {
  if (!holds(*file, reinterpret_cast<std::uintptr_t>(address))) return 0;
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  for (int i = 0; i < file->dlpi_phnum; ++i) {
    const auto& part = file->dlpi_phdr[i];
    if (part.p_type != PT_LOAD || part.p_flags & PF_W) continue;
    const std::uintptr_t start = file->dlpi_addr + part.p_vaddr;
    const std::uintptr_t from = (start + page - 1) / page * page;
    const std::uintptr_t to = (start + part.p_memsz) / page * page;
    if (from < to) ::madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
  }
  return 1;
}

}  // namespace
#endif

void Library::trim() const {
#if defined(__GLIBC__)
  ::malloc_trim(0);
#endif
}

void Library::settle() const {
  trim();
#if defined(__linux__)
  ::dl_iterate_phdr(leave, const_cast<void*>(entry_));
#endif
}

}  // namespace arc::ort
