// What stands between the kernels and their callers: types, letters, exceptions.
#pragma once

#include "work.h"

// A function as it is called: by its name, with arguments of these letters.
struct Entry {
  const char *name, *letters;
  void* call;
};

// The functions of a file, which is all that has to be said of them: tables make a chain of their own.
struct Table {
  const Entry* entries;
  const Table* next;
  explicit Table(const Entry* entries);
};
extern const Table* first_table;
inline Table::Table(const Entry* entries) : entries(entries), next(first_table) { first_table = this; }

// What the arguments of a function point to.
struct Element;  // the map's dtype
struct Sum;      // its accumulator type: double for double, else float

namespace {

template <class F> void typed(int dtype, F&& f) {
  switch (dtype) {
    case 0: return f(float{});
    case 1: return f(double{});
    case 2: return f(bf16{});
    default: return f(f16{});
  }
}

// Every function: dtype 0 float, 1 double, 2 bfloat16, 3 half; sizes (N, C, H, W) and whether the map
// is channels_last. Pointers may be null where the functions above say so.
#define A_ Acc<decltype(tag)>
#define SHAPE Shape s = last ? Shape{n, h * w, c} : Shape{n, c, h * w}

// How a function is called: a letter for each argument, made from its type.
template <class T> constexpr char kLetter = 0;
template <> constexpr char kLetter<int> = 'i';
template <> constexpr char kLetter<i64> = 'n';
template <> constexpr char kLetter<double> = 'd';
template <> constexpr char kLetter<Element*> = 'x';
template <> constexpr char kLetter<Sum*> = 's';
template <> constexpr char kLetter<int32_t*> = 'k';
template <> constexpr char kLetter<Sum**> = 'S';
template <> constexpr char kLetter<int32_t**> = 'K';
template <> constexpr char kLetter<double*> = 'D';
template <> constexpr char kLetter<i64*> = 'N';
template <class T> constexpr char kLetter<const T*> = kLetter<T*>;

// A function as it is called from outside: no exception leaves it, a negative result stands for one.
constexpr i64 kNoMemory = -1, kFailed = -2;
template <auto F> struct Outside;
template <class R, class... Args, R (*F)(Args...)> struct Outside<F> {
  static_assert((... && (kLetter<Args> != 0)), "an argument of a type that has no letter");
  static constexpr char letters[] = {kLetter<Args>..., 0};
  static i64 call(Args... args) noexcept {
    try {
      if constexpr (std::is_void_v<R>) return F(args...), 0;
      else return F(args...);
    } catch (const std::bad_alloc&) {
      return kNoMemory;
    } catch (const std::length_error&) {  // a std::vector larger than any memory
      return kNoMemory;
    } catch (...) {
      return kFailed;
    }
  }
};

}  // namespace
#define ENTRY(name) Entry{#name, Outside<mmattn_##name>::letters, (void*)Outside<mmattn_##name>::call}
// At the end of a file, its functions: SHOW(ENTRY(one), ENTRY(other))
#define SHOW(...)                                          \
  namespace {                                              \
  const Entry entries[] = {__VA_ARGS__, Entry{}};          \
  const Table table(entries);                              \
  }
