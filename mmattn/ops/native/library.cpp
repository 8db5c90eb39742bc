// The CPU kernels of mmattn's operators: plain C++17 behind a C ABI, no torch headers. A file a room.
//
// Two memory layouts, one code: a sample is a matrix of R rows by L contiguous lanes, (C, H*W) for
// a contiguous tensor and (H*W, C) for a channels_last one. A gate whose factor is a function of
// channel and position is then a function of row and lane, and swapping the layout swaps the two.
//
// Deterministic: work is cut by shape alone (never by the number of threads), every cut writes its
// own partial result, and these are added in order. Sums run in float inside a cut and in double
// across cuts, so that no running sum gets long.

#include "abi.h"

const Table* first_table = nullptr;
OpenMP openmp;

#define SHOWN extern "C" __attribute__((visibility("default")))

// The runtime's functions, or null for one thread.
SHOWN void mmattn_openmp(void* parallel, void* thread, void* threads) {
  openmp.parallel = (decltype(openmp.parallel))parallel;
  openmp.thread = (int (*)())thread;
  openmp.threads = (int (*)())threads;
}

// What else the library shows: its functions, in tables that each end with one without a name.
SHOWN const Entry* const* mmattn_entries() {
  static const std::vector<const Entry*> tables = [] {
    std::vector<const Entry*> found;
    for (const Table* table = first_table; table; table = table->next) found.push_back(table->entries);
    found.push_back(nullptr);
    return found;
  }();
  return tables.data();
}
