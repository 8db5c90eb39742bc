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

extern const Entry scale_entries[];
extern const Entry pool_entries[];
extern const Entry strips_entries[];
extern const Entry drtam_entries[];
extern const Entry convolution_entries[];
extern const Entry entropy_entries[];

// All that the library shows: the tables of its functions, each up to one without a name.
extern "C" __attribute__((visibility("default"))) const Entry* const* mmattn_entries() {
  static const Entry* const tables[] = {
      scale_entries,
      pool_entries,
      strips_entries,
      drtam_entries,
      convolution_entries,
      entropy_entries,
      nullptr,
  };
  return tables;
}
